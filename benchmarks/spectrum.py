"""Spectral density of a Hessian by stochastic Lanczos quadrature, against the dense Hessian, in float64.

    python -m benchmarks.spectrum

The network is a small convolutional one that was trained on the digits for a few epochs; its Hessian is that of the
cross-entropy on 150 test images. `distance` is the Wasserstein-1 distance to the dense spectrum over its range.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS
from gapssg.data import load_split
from gapssg.landscape.lanczos import quadrature
from gapssg.landscape.layout import Layout
from gapssg.landscape.sharpness import random_signs
from gapssg.landscape.spectrum import nodes_of
from gapssg.runs.results.landscape import SpectralDensity

_IMAGES = 150
_SEEDS = 5


def main() -> None:
    """Measure, print a table, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "spectrum.csv")
    arguments = parser.parse_args()
    machine = describe_machine(torch.device("cpu"))
    print_machine(machine)
    matrix = hessian()
    exact = torch.linalg.eigvalsh(matrix)
    spread = (exact[-1] - exact[0]).item()
    rows = []
    for steps, starts in ((10, 6), (20, 6), (40, 2), (40, 6), (40, 30), (80, 6)):
        for seed in range(_SEEDS):
            began = time.perf_counter()
            nodes, weights = estimate(matrix, steps, starts, seed)
            rows.append({
                "parameters": len(exact), "steps": steps, "starts": starts, "seed": seed,
                "distance": wasserstein_distance(exact, nodes, v_weights=weights) / spread,
                "largest_eigenvalue_error": abs(nodes[-1].item() / exact[-1].item() - 1),
                "trace_error": abs(len(exact) * (weights @ nodes).item() / exact.sum().item() - 1),
                "seconds": time.perf_counter() - began,
            })  # fmt: skip
    worst = {(row["steps"], row["starts"]): max(each["distance"] for each in rows
             if (each["steps"], each["starts"]) == (row["steps"], row["starts"])) for row in rows}  # fmt: skip
    shown = [(str(steps), str(starts), f"{distance:.3%}") for (steps, starts), distance in worst.items()]
    print_table(f"{len(exact)} eigenvalues from {exact[0]:.3g} to {exact[-1]:.3g}",
                ("Lanczos steps", "starts", f"largest distance of {_SEEDS} seeds"), shown)  # fmt: skip
    write_results(arguments.output, rows, machine)


def hessian() -> Tensor:
    """Train a small network and return its Hessian on test images, (P, P) float64."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh()),
        *(nn.Conv2d(4, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(32, 10),
    ).double()
    train, test = load_split("digits", "train"), load_split("digits", "test")
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(5):
        for chosen in torch.split(torch.randperm(len(train.images)), 64):
            loss = F.cross_entropy(network(train.images[chosen].double() / 255), train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    network.eval()
    layout, weights = Layout.of(network), torch.cat([each.detach().reshape(-1) for each in network.parameters()])
    images, labels = test.images[:_IMAGES].double() / 255, test.labels[:_IMAGES]

    def loss_at(at: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, layout.split(at), (images,)), labels)

    matrix: Tensor = jacrev(grad(loss_at), chunk_size=64)(weights)
    return (matrix + matrix.T) / 2


def estimate(matrix: Tensor, steps: int, starts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the nodes of all quadratures and their weights."""
    generator = torch.Generator().manual_seed(seed)
    found = [
        quadrature(lambda vector: matrix @ vector, random_signs(len(matrix), generator).double(), steps)
        for _ in range(starts)
    ]
    nodes = tuple(tuple(pairs) for pairs in found if pairs is not None)
    return nodes_of(SpectralDensity(parameters=len(matrix), starts=nodes))


if __name__ == "__main__":
    main()
