"""Settings with which a run of each method takes no time."""

from __future__ import annotations

from typing import Any

GENERATOR = {"generator_width": 4, "latent_size": 8, "synthesis_batch_size": 8}
PROCEDURAL = {"procedural_share": 0.34}
ALONG = {**GENERATOR, "rounds": 2, "generator_steps": 2, "distillation_steps": 2}
METHODS: dict[str, dict[str, Any]] = {
    "gapssg-fast": {**GENERATOR, "generator_steps": 2, "distillation_steps": 3, "labelled_views": 1, **PROCEDURAL},
    "gapssg": {**GENERATOR, "generator_steps": 2},
    "fast": {**GENERATOR, "generator_steps": 2, "distillation_steps": 3, "warm_up": 0.3, "restart": 0.7},
    "nayer": {**GENERATOR, "generator_steps": 2, "distillation_steps": 3, "warm_up": 0.3, "generator_life": 1},
    "cmi": {**GENERATOR, "generator_steps": 2, "distillation_steps": 3, "bank_size": 20, "negatives": 12},
    "deepinversion": {"synthesis_batch_size": 8, "pixel_steps": 2, "distillation_steps": 3},
    "dafl": ALONG,
    "dfq": ALONG,
    "zskt": {**ALONG, "augment": True},
    "dfad": ALONG,
    "mad": ALONG,
    "noise": {"synthesis_batch_size": 8},
}
