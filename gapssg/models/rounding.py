"""How much of a difference between logits is rounding."""

from __future__ import annotations

UNIT_ROUNDOFF = 2.0**-24  # of float32


def rounding_tolerance(error: float, unit_roundoff: float = UNIT_ROUNDOFF) -> float:
    """Return the largest difference of logits that rounding explains, relative to the largest logit.

    It is 32 times the model's own rounding error, `error`, which is its difference from float64. A file that computes
    the same in another order differs by about as much as that: for ten models of 16 to 201 layers, ONNX files differed
    by up to 2.1 times that, and weights in half precision by at least 550 times; 32 is about the geometric mean.
    `unit_roundoff` is that of the file's numbers.
    """
    return min(1.0, 32 * max(UNIT_ROUNDOFF, unit_roundoff, error))
