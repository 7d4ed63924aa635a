"""Eigenvalues, eigenvectors and the spectral density of a symmetric matrix by the Lanczos iteration."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.landscape.sharpness import Product, measurement
from gapssg.runs.results.landscape import Measurement


class Krylov(NamedTuple):
    """A matrix in an orthonormal basis of vectors (P,), where it is tridiagonal.

    Attributes:
        basis: (M, P) float64; the first is the start.
        matrix: (M, M) float64, on the CPU; not finite if the products were not.
    """

    basis: Tensor
    matrix: Tensor

    def eigh(self) -> tuple[Tensor, Tensor] | None:
        """Return eigenvalues (M,), ascending, and eigenvectors (M, M), in columns; None if not finite."""
        if not self.matrix.isfinite().all():
            return None
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors


class Eigenpairs(NamedTuple):
    """The largest eigenvalues, the largest first, with their residuals as errors, and unit eigenvectors (K, P)."""

    values: list[Measurement]
    vectors: Tensor


def lanczos(product: Product, start: Tensor, steps: int) -> Krylov:
    """Make Lanczos steps with full reorthogonalisation, which prevents spurious copies of eigenvalues.

    Args:
        product: The matrix.
        start: (P,), in the type that `product` takes.
        steps: Largest number of products; fewer if the vectors span an invariant subspace.
    """
    steps = min(steps, len(start))
    basis = torch.empty(steps, len(start), dtype=torch.float64, device=start.device)
    basis[0] = start.double() / start.double().norm()
    matrix = torch.zeros(steps, steps, dtype=torch.float64)
    size = 1
    while True:
        known = basis[:size]
        vector = product(known[-1].to(start.dtype)).double()
        matrix[size - 1, size - 1] = vector @ known[-1]
        for _ in range(2):  # twice is enough (Parlett, section 6.9)
            vector = vector - known.T @ (known @ vector)
        beside, scale = vector.norm().item(), matrix.diagonal().abs().max().item()
        if size == steps or not math.isfinite(beside) or beside <= 1e-7 * scale:
            return Krylov(known, matrix[:size, :size])
        matrix[size - 1, size] = matrix[size, size - 1] = beside
        basis[size] = vector / beside
        size += 1


def largest_eigenpairs(product: Product, start: Tensor, steps: int, count: int) -> Eigenpairs | None:
    """Estimate the largest (not the largest absolute) eigenvalues of a symmetric matrix, and their eigenvectors.

    The error is the residual norm of the Ritz pair: at least one eigenvalue is within it (Parlett, "The Symmetric
    Eigenvalue Problem", section 13.2), which for the first is the largest with probability 1 for a random start. An
    eigenvector has a positive product with the start. Of a multiple eigenvalue only one is found.

    Args:
        product: The matrix.
        start: (P,), a random vector.
        steps: Largest number of products, besides one for each error.
        count: K.

    Returns:
        The pairs; None if products are not finite or the start is in an invariant subspace of fewer dimensions.
    """
    krylov = lanczos(product, start, steps)
    pairs = krylov.eigh()
    if pairs is None or len(pairs[0]) < count:
        return None
    values, vectors = pairs[0].flip(0)[:count], pairs[1].flip(1)[:, :count]
    vectors = vectors * torch.where(vectors[0] < 0, -1.0, 1.0)
    found = vectors.T.to(krylov.basis.device) @ krylov.basis
    measured = []
    for value, vector in zip(values.tolist(), found, strict=True):
        # The measured residual includes the rounding of the products.
        residual = product(vector.to(start.dtype)).double() - value * vector
        measured.append(measurement(value, residual.norm().item()))
    return Eigenpairs(measured, found)


def largest_eigenvalue(product: Product, start: Tensor, steps: int) -> Measurement:
    """Estimate the largest eigenvalue with its error, as `largest_eigenpairs` does; both None if not finite."""
    pairs = largest_eigenpairs(product, start, steps, 1)
    return Measurement() if pairs is None else pairs.values[0]


def quadrature(product: Product, start: Tensor, steps: int) -> list[tuple[float, float]] | None:
    """Return a Gauss quadrature of the spectral density of a symmetric matrix, weighted by a vector.

    Golub and Welsch (1969): the Ritz values are the nodes, the squared first components of the eigenvectors of the
    tridiagonal matrix the weights. The weights of a density with respect to random vectors with identity covariance
    are on average those of the spectral density, 1/P for each eigenvalue (stochastic Lanczos quadrature; Ubaru, Chen
    and Saad, 2017).

    Args:
        product: The matrix.
        start: (P,), a random vector.
        steps: Largest number of products, and of nodes.

    Returns:
        Nodes in ascending order with their weights, whose sum is 1; None if products are not finite.
    """
    pairs = lanczos(product, start, steps).eigh()
    return None if pairs is None else list(zip(pairs[0].tolist(), pairs[1][0].square().tolist(), strict=True))
