"""The curvature of the loss as a function of all parameters, by gradients and Hessian-vector products."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.errors import InputError, reporting_out_of_memory, shortened
from gapssg.evaluation.predict import batch_size_for
from gapssg.landscape.lanczos import largest_eigenvalue, quadrature
from gapssg.landscape.layout import Layout
from gapssg.landscape.samples import Samples
from gapssg.landscape.settings import CurvatureSettings
from gapssg.landscape.sharpness import epsilon_sharpness, finite, random_signs, trace
from gapssg.runs.results.landscape import Curvature, Measurement, SpectralDensity
from gapssg.text import listed

_BATCH_SIZE = 256
Value = TypeVar("Value")


class CentreLoss:
    """The mean loss on samples as a function of all parameters, in float32, with fixed batch-norm statistics."""

    def __init__(self, module: nn.Module, normalization: Normalization, samples: Samples, runtime: Runtime) -> None:
        """Prepare the loss of `module`, which is copied."""
        self._module = runtime.place(copy.deepcopy(module)).eval()
        self.layout = Layout.of(self._module)
        self.weights = self.layout.flatten(self._module.state_dict())
        size = min(_BATCH_SIZE, batch_size_for(samples.images.shape[1:]))
        batches = [samples.take(slice(start, start + size)) for start in range(0, len(samples), size)]
        self._batches = [(normalization(to_unit_range(batch.images)), batch) for batch in batches]
        self._count = len(samples)

    def __len__(self) -> int:
        """Number of samples."""
        return self._count

    def loss_and_gradient(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return the loss at weights (P,) and its gradient (P,)."""
        total, gradient = 0.0, torch.zeros_like(weights)
        for images, batch in self._batches:
            at = weights.detach().requires_grad_()
            loss = self._loss(at, images, batch)
            gradient += torch.autograd.grad(loss, at)[0]
            total += loss.item()
        return total, gradient

    def hessian_product(self, vector: Tensor) -> Tensor:
        """Return the Hessian at the network's own weights times a vector (P,)."""
        product = torch.zeros_like(vector)
        for images, batch in self._batches:
            at = self.weights.detach().requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):  # the fast attention kernels have no second derivatives
                (gradient,) = torch.autograd.grad(self._loss(at, images, batch), at, create_graph=True)
                product += torch.autograd.grad(gradient, at, vector)[0]
        return product

    def _loss(self, weights: Tensor, images: Tensor, batch: Samples) -> Tensor:
        logits = functional_call(self._module, self.layout.split(weights), (images,))
        return batch.loss(logits) * (len(batch) / self._count)


def centre_loss(
    module: nn.Module, normalization: Normalization, samples: Samples, runtime: Runtime, settings: CurvatureSettings
) -> CentreLoss:
    """Return the loss of a network on the samples that are drawn for its curvature."""
    generator = torch.Generator().manual_seed(runtime.derive_seed("curvature samples"))
    return CentreLoss(module, normalization, samples.draw(settings.samples, generator), runtime)


def check_second_derivatives(
    module: nn.Module, normalization: Normalization, samples: Samples, runtime: Runtime
) -> None:
    """Raise `InputError` if an operator of a network, tried with one sample, has no second derivative."""
    loss = CentreLoss(module, normalization, samples.take(slice(1)), runtime)
    missing: dict[str, str] = {}
    _measured("second derivatives", missing, lambda: loss.hessian_product(torch.zeros_like(loss.weights)))
    for name, reason in missing.items():
        raise InputError(f"the network has no {name}: {reason}")


def measure_curvature(
    module: nn.Module, normalization: Normalization, samples: Samples, runtime: Runtime, settings: CurvatureSettings
) -> Curvature:
    """Return the largest Hessian eigenvalue and the trace with their errors, the epsilon-sharpness, and the spectrum.

    All parameters count, in float32, with the network's own batch-norm statistics. Measurements that need a derivative
    that an operator of the network lacks are left out, and `missing` says why.
    """
    loss = centre_loss(module, normalization, samples, runtime, settings)
    start = lanczos_start(loss, runtime)
    product, signs = loss.hessian_product, runtime.random_stream("hutchinson")
    missing: dict[str, str] = {}
    eigenvalue = _measured("eigenvalue", missing, lambda: largest_eigenvalue(product, start, settings.lanczos_steps))
    hutchinson = _measured("trace", missing, lambda: trace(product, len(start), settings.trace_samples, signs))
    sharpness = _measured(
        "sharpness",
        missing,
        lambda: epsilon_sharpness(loss.loss_and_gradient, loss.weights, settings.epsilon, settings.ascent_steps),
    )
    density = None
    if settings.spectrum:
        density = _measured("spectral density", missing, lambda: spectral_density(loss, runtime, settings))
    return Curvature(
        samples=len(loss),
        largest_eigenvalue=eigenvalue or Measurement(),
        trace=hutchinson or Measurement(),
        epsilon_sharpness=None if sharpness is None else finite(sharpness),
        epsilon=settings.epsilon,
        spectral_density=density,
        missing=f"no {listed(list(missing))}: {next(iter(missing.values()))}" if missing else None,
    )


def lanczos_start(loss: CentreLoss, runtime: Runtime) -> Tensor:
    """Return the random vector (P,) from which the Lanczos iterations for the largest eigenvalues start."""
    stream = runtime.random_stream("lanczos")
    return torch.randn(len(loss.weights), generator=stream, device=runtime.device, dtype=torch.float32)


def spectral_density(loss: CentreLoss, runtime: Runtime, settings: CurvatureSettings) -> SpectralDensity | None:
    """Return the spectral density of the Hessian; None if it is not finite."""
    size, signs = len(loss.weights), runtime.random_stream("spectral density")
    starts = (random_signs(size, signs).to(loss.weights.dtype) for _ in range(settings.spectrum_starts))
    found = [quadrature(loss.hessian_product, start, settings.spectrum_steps) for start in starts]
    finite_ones = tuple(tuple(nodes) for nodes in found if nodes is not None)
    return SpectralDensity(parameters=size, starts=finite_ones) if len(finite_ones) == len(found) else None


def _measured(name: str, missing: dict[str, str], measure: Callable[[], Value]) -> Value | None:
    """Return the result of `measure`; None, with the reason in `missing`, if the network is not differentiable."""
    try:
        with reporting_out_of_memory():
            return measure()
    except RuntimeError as error:
        missing[name] = shortened(str(error).split("\n")[0], 200)
        return None
