"""Audits an overfitted and a regularised teacher of the digits, and a student of each.

    python -m benchmarks.audit

Both are WRN-16-1 networks, trained on the same 200 digits for 30 epochs: one without crops and weight decay, one with
those of `gapssg pretrain-teacher`. Their shadow models are trained likewise. Writes `benchmarks/results/audit.csv`: a
row for each attack on each model, with the processor's seconds of the three commands.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS

OVERFITTING = ["--crop-padding", "0", "--set", "optimizer.weight_decay=0.0"]
TEACHERS = {
    "overfitted": (OVERFITTING, ["--set", "shadow.optimizer.weight_decay=0.0"]),
    "regularised": ([], []),
}
MEMBERS, EPOCHS = 200, 30


def main() -> None:
    """Make and audit both, print the table, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shadow-models", type=int, default=4)
    parser.add_argument("--directory", type=Path, default=Path("runs/audit"))
    parser.add_argument("--output", type=Path, default=RESULTS / "audit.csv")
    arguments = parser.parse_args()
    figures = [row for name in TEACHERS for row in figures_of(name, arguments.directory, arguments.shadow_models)]
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print_machine(machine)
    print_table("gapssg audit", list(figures[0]), [list(row.values()) for row in figures])
    write_results(arguments.output, figures, machine)


def figures_of(name: str, directory: Path, shadow_models: int) -> list[dict[str, Any]]:
    """Train a teacher, distil a student, audit both; return a row for each attack on each."""
    options, of_shadows = TEACHERS[name]
    teacher, student = directory / name, directory / f"{name}-student"
    members = ["--batch-size", "50", "--precision", "fp32", "--overwrite", "--output"]
    _, pretraining = run(
        *("pretrain-teacher", "--data", "digits", "--set", f"data.images={MEMBERS}", "--model", "wrn16_1"),
        *("--epochs", str(EPOCHS), *options, *members, str(teacher)),
    )
    _, distillation = run(
        *("distill", "--teacher", str(teacher / "model.safetensors"), "--student", "wrn16_1", "--recipe", "digits"),
        *("--epochs", "4", "--set", "method.generator_steps=10", *members, str(student)),
    )
    audit, seconds = run(
        *("audit", str(student), "--members", "digits", "--set", f"members.images={MEMBERS}"),
        *("--non-members", "digits", "--shadow-models", str(shadow_models), "--shadow-epochs", str(EPOCHS)),
        *("--set", "shadow.batch_size=50", *of_shadows),
    )
    return [
        {
            **{"teacher": name, "model": model["role"], "attack": attack["attack"], "shadow_models": shadow_models},
            **{key: model[key] for key in ("members_top1", "non_members_top1")},
            **{f"auc_{key}".removesuffix("_value"): value for key, value in attack["auc"].items()},
            **{f"found_{key}".removesuffix("_value"): value for key, value in found_at_one_percent(attack).items()},
            **{"findings": len(audit["findings"]), "shadow_top1": audit["shadow"]["outside_top1"]},
            **{"pretraining_cpu_seconds": pretraining, "distillation_cpu_seconds": distillation},
            "audit_cpu_seconds": seconds,
        }
        for model in audit["models"]
        for attack in model["attacks"]
    ]


def found_at_one_percent(attack: dict[str, Any]) -> dict[str, float]:
    """Return the share of the members that an attack finds at one false positive in 100, and its interval."""
    found: dict[str, float] = next(
        rates["true_positives"] for rates in attack["at_low_false_positives"] if rates["one_in"] == 100
    )
    return found


def run(*words: str) -> tuple[dict[str, Any], float]:
    """Run a command; return its result and the processor's seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "gapssg", *words, "--json", "--quiet"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
