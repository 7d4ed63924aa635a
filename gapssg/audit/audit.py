"""`audit`: attacks on models and on the sample pool with images whose membership is known."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gapssg.audit.attacks import ONE_IN, area_under_roc, likelihood_ratios, rate_at, roc_curve
from gapssg.audit.findings import find_signs
from gapssg.audit.neighbours import NeighbourComparison, closest_pairs, compare
from gapssg.audit.page import Curve, render_page
from gapssg.audit.predictions import features_of, predictions_of
from gapssg.audit.settings import AuditSettings, check_outputs
from gapssg.audit.shadows import Shadows, train_shadows
from gapssg.audit.sheet import Row, draw_sheet
from gapssg.audit.subjects import Audited, KnownImages, read_audited, read_known_images
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError, blaming_given_files
from gapssg.files import user_path, write_atomically
from gapssg.runs.directory import Display, SilentDisplay, encode_png, run_facts
from gapssg.runs.failures import warn_of_failure
from gapssg.runs.results.audit import (
    Attack,
    AttackResult,
    AuditedModel,
    AuditResult,
    AuditTiming,
    ClosestPair,
    NeighbourResult,
    Space,
)

_PAIRS = 8
_LOSS: Attack = "loss threshold"
_LIRA: Attack = "LiRA, offline"


def audit_model(
    settings: AuditSettings,
    output: Path | None = None,
    *,
    sheet: Path | None = None,
    overwrite: bool = False,
    display: Display | None = None,
) -> AuditResult:
    """Attack a run or a model with images whose membership in the training set is known.

    Members and non-members are told apart by the loss (Yeom et al., CSF 2018) and, with shadow models, by the offline
    likelihood-ratio attack (Carlini et al., S&P 2022), on teacher and student. The images of a run's sample pool are
    compared with both, in pixels and in the teacher's features.

    Args:
        settings: The run or model, members and non-members.
        output: A page about the result, whose name ends in .html. It shows members: it is as confidential as they are.
        sheet: A picture of the closest pairs, whose name ends in .png; also part of the page.
        overwrite: Whether these files may be replaced.
        display: Shows the progress.

    Returns:
        Rates and areas in [0, 1] with 95 % intervals, and `findings`, a sentence for each of them above chance. No
        findings are no proof of privacy.

    Raises:
        InputError: A run has no pool, a file or the data cannot be used, they do not match, logits are not finite, or
            all non-members are members; nothing has been written.
        RunError: A shadow model diverged, or a file cannot be written.
    """
    output = user_path(output) if output is not None else None
    sheet = user_path(sheet) if sheet is not None else None
    check_outputs(output, sheet, overwrite)
    result, curves, rows = _measure(settings, output, sheet, display or SilentDisplay())
    picture = draw_sheet(rows) if rows else None
    if sheet is not None and picture is not None:
        write_atomically(sheet, encode_png(picture))
    if output is not None:
        write_atomically(output, render_page(result, curves, picture).encode())
    return result


class _Measured(NamedTuple):
    """The result, its ROC curves, and the rows of its sheet."""

    result: AuditResult
    curves: list[Curve]
    rows: list[Row]


def _measure(settings: AuditSettings, output: Path | None, sheet: Path | None, display: Display) -> _Measured:
    started = time.perf_counter()
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    audited = read_audited(settings)
    if sheet is not None and audited.pool is None:
        raise InputError("--sheet shows images of a pool; name the directory of a `distill` run, or leave it out")
    known = read_known_images(settings, audited.first, display)
    for model in audited.models.values():
        warn_of_failure(model.path, display)
    images = known.both.to(runtime.device)
    training = time.perf_counter()
    is_shadowed = settings.shadow.models > 0
    shadows = train_shadows(settings, audited.first.card, images, runtime, display) if is_shadowed else None
    trained = time.perf_counter()
    with blaming_given_files():
        models, curves = _attack_all(settings, audited, known, images, shadows, runtime, display)
        neighbours = list(_compare_pool(settings, audited, known, shadows, runtime, display))
    result = AuditResult(
        audited=str(settings.model),
        output=None if output is None else str(output),
        sheet=None if sheet is None else str(sheet),
        members=known.facts[0],
        non_members=known.facts[1],
        models=tuple(models),
        shadow=None if shadows is None else shadows.facts,
        neighbours=tuple(each.result for each in neighbours),
        findings=tuple(find_signs(models, [each.result for each in neighbours])),
        notes=tuple(_notes(audited, known, shadows, len(neighbours))),
        timing=AuditTiming(total=time.perf_counter() - started, shadow_models=trained - training),
        **dict(run_facts(runtime, settings)),
    )
    return _Measured(result, curves, [row for each in neighbours for row in each.rows])


def _attack_all(
    settings: AuditSettings,
    audited: Audited,
    known: KnownImages,
    images: ImageSet,
    shadows: Shadows | None,
    runtime: Runtime,
    display: Display,
) -> tuple[list[AuditedModel], list[Curve]]:
    models: list[AuditedModel] = []
    curves: list[Curve] = []
    count = len(known.members)
    for number, (role, model) in enumerate(audited.models.items()):
        display.progress("attacking", number, len(audited.models))
        module = runtime.place(model.module)
        normalization = model.normalization(runtime.device)
        name = str(model.path)
        predictions = predictions_of(module, normalization, images, runtime, settings.batch_size, name)
        scores = {_LOSS: predictions.margins}
        if shadows is not None:
            scores[_LIRA] = likelihood_ratios(predictions.margins, shadows.margins, shadows.is_inside)
        right = predictions.is_right.double()
        models.append(
            AuditedModel(
                role=role,
                **model.facts,
                members_top1=right[:count].mean().item(),
                non_members_top1=right[count:].mean().item(),
                attacks=tuple(_attacked(name, each[:count], each[count:]) for name, each in scores.items()),
            )
        )
        curves += [Curve(name, role, roc_curve(each[:count], each[count:])) for name, each in scores.items()]
    display.progress("attacking", len(audited.models), len(audited.models))
    return models, curves


def _attacked(name: Attack, members: Tensor, non_members: Tensor) -> AttackResult:
    return AttackResult(
        attack=name,
        auc=area_under_roc(members, non_members),
        at_low_false_positives=tuple(rate_at(members, non_members, one_in) for one_in in ONE_IN),
    )


class _Neighbours(NamedTuple):
    """The comparison in one space, and its rows of the sheet."""

    result: NeighbourResult
    rows: list[Row]


def _compare_pool(
    settings: AuditSettings,
    audited: Audited,
    known: KnownImages,
    shadows: Shadows | None,
    runtime: Runtime,
    display: Display,
) -> Iterator[_Neighbours]:
    """Compare images of the pool, if there is one, with members and non-members, in pixels and in features."""
    if audited.pool is None:
        return
    generator = torch.Generator().manual_seed(runtime.derive_seed("audit"))
    sets = (audited.pool, known.members.images, known.non_members.images)
    orders = [torch.randperm(len(each), generator=generator) for each in sets]
    orders[0] = orders[0][: settings.pool_images].sort().values
    images = [each[order].to(runtime.device) for each, order in zip(sets, orders, strict=True)]
    numbers = (orders[0], orders[1], known.numbers[orders[2]])
    card = audited.first.card
    networks: dict[Space, nn.Module] = {"teacher's features": runtime.place(audited.first.module)}
    if shadows is not None:
        networks["shadow model's features"] = shadows.first
    with replace(runtime, precision="fp32").configured():
        display.progress("comparing", 0, 1 + len(networks))
        pixels = [each.flatten(1) for each in images]
        yield _neighbours("pixels", compare(*pixels), 255 * math.sqrt(pixels[0].shape[1]), numbers, images)
        for done, (space, module) in enumerate(networks.items(), 1):
            display.progress("comparing", done, 1 + len(networks))
            features = [features_of(module, card, each, runtime, settings.batch_size) for each in images]
            found = [each for each in features if each is not None]
            if found:
                yield _neighbours(space, compare(*found), 1.0, numbers, images)
    display.progress("comparing", 1 + len(networks), 1 + len(networks))


def _neighbours(
    space: Space,
    comparison: NeighbourComparison,
    scale: float,
    numbers: tuple[Tensor, ...],
    images: list[Tensor],
) -> _Neighbours:
    closest, rows = [], []
    for query in closest_pairs(comparison, _PAIRS):
        near, far = comparison.members, comparison.non_members
        places = (query, int(near.indices[query]), int(far.indices[query]))
        pool_image, member, non_member = (int(each[place]) for each, place in zip(numbers, places, strict=True))
        to_member, to_non_member = (each.distances[query].item() / scale for each in (near, far))
        closest.append(
            ClosestPair(
                pool_image=pool_image,
                member=member,
                non_member=non_member,
                to_member=to_member,
                to_non_member=to_non_member,
            )
        )
        label = (space, f"to member: {to_member:.3g}", f"to non-member: {to_non_member:.3g}", f"member {member:,}")
        tiles = torch.stack([each[place].cpu() for each, place in zip(images, places, strict=True)])
        rows.append(Row(label, tiles))
    result = NeighbourResult(
        space=space,
        images=len(images[0]),
        references=comparison.references,
        nearest_is_member=comparison.nearest_is_member,
        effective_images=comparison.effective_queries,
        median_ratio=comparison.median_ratio,
        median_ratio_interval=comparison.median_ratio_interval,
        closest=tuple(closest),
    )
    return _Neighbours(result, rows)


def _notes(audited: Audited, known: KnownImages, shadows: Shadows | None, spaces: int) -> Iterator[str]:
    """Yield what was not measured, and why."""
    count = len(known.non_members)
    for one_in in ONE_IN:
        if count < one_in:
            yield (
                f"no true-positive rate at {100 / one_in:g} % false positives: it needs at least {one_in:,} "
                f"non-members, and there are {count:,}"
            )
    if shadows is None:
        yield "no likelihood-ratio attack, which is the stronger one: it needs shadow models (--shadow-models 16)"
    if "student" in audited.models and "teacher" not in audited.models:
        yield "the teacher was not attacked: name it with --teacher"
    if audited.pool is None:
        yield "no synthetic images were compared: they need the directory of a `distill` run with its pool"
    elif spaces < 2:
        yield "no distances in features: the teacher's logits do not come from a linear layer"
    if left_out := known.facts[1].left_out:
        yield f"{left_out:,} of the non-members are also members, by SHA-256, and were left out"
