"""`card`: a model card beside the weights of a run, with the metadata block that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from gapssg.data import public_name, whole_name
from gapssg.errors import InputError, shortened
from gapssg.files import check_exists, is_file, read_bounded, user_path, write_atomically
from gapssg.models.hub import huggingface_hub
from gapssg.models.reference import is_factory, is_module
from gapssg.report.runs import TrainingRun, read_training_run
from gapssg.runs.directory import CARD
from gapssg.runs.evaluations import KeptEvaluation, read_evaluations
from gapssg.runs.failures import weigh
from gapssg.runs.results.common import Scores
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.training import Trained
from gapssg.safe_paths import inside
from gapssg.text import has_top5, percent, printable

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_MOST_CLASSES = 50
_LARGEST_CARD = 1 << 24  # bytes


def write_card(
    run: Path, *, licence: str | None = None, overwrite: bool = False, factories: Iterable[str] = ()
) -> Path:
    """Write `README.md` into the directory of a finished run of `distill` or `pretrain-teacher`.

    It contains no path of this machine. What `eval` and `report` have measured of the weights since the run is on it,
    and counts for more than what the run found on synthetic images.

    Args:
        run: The directory.
        licence: The licence of the model, by the Hub's identifier, such as `apache-2.0`.
        overwrite: Whether an existing card, which may have been edited, is replaced; without `licence`, that of the
            existing one is kept.
        factories: Each `package.module:factory` that may be imported and called if the model file names it.

    Returns:
        The card.

    Raises:
        InputError: `huggingface_hub` is not installed, the run is not finished or damaged, its model cannot be read,
            the licence is not an identifier, there is a card already, or its licence cannot be kept.
        RunError: The card cannot be written.
    """
    run = user_path(run)
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise InputError(f"--licence {shortened(licence)} is not an identifier of the Hub, such as apache-2.0")
    read = read_training_run(run, run.resolve().name)
    file = inside(run) / CARD
    if is_file(file) and not overwrite:
        raise InputError(f"{file} already exists, and may have been edited; add --overwrite to replace it")
    check_exists(read.model_file)
    from gapssg.models.model_file import load_model, read_card

    card, sha256 = read_card(read.model_file)
    if not is_module(card.architecture):
        load_model(read.model_file, factories)
    evaluations = read_evaluations(run, sha256)
    text = (
        _environment()
        .get_template("card.md.jinja")
        .render(
            metadata=_metadata(read, licence or _licence_of(file), evaluations, has_top5(card.num_classes)),
            with_top5=has_top5(card.num_classes),
            evaluations=[(each.public_data, each) for each in evaluations],
            **weigh(read.result, evaluations)._asdict(),
            name=read.name,
            result=read.result,
            is_distillation=isinstance(read.result, DistillResult),
            data=None if read.result.data is None else public_name(read.result.data),
            card=card,
            factory=card.architecture if is_factory(card.architecture) else None,
            is_module=is_module(card.architecture),
            sha256=sha256,
            has_best=is_file(read.best_file),
            class_names=card.class_names[:_MOST_CLASSES],
        )
    )
    write_atomically(file, text.encode())
    return file


def _licence_of(file: Path) -> str | None:
    """Return the licence in the metadata of a card, which may have been edited; None if there is none, or no card.

    Raises `InputError` if the metadata cannot be read, or name a licence otherwise than `--licence` does.
    """
    if not is_file(file):
        return None
    hub = huggingface_hub("a model card")
    text = read_bounded(file, _LARGEST_CARD).decode(errors="replace")
    if not text.startswith("---"):  # no metadata
        return None
    try:
        found = hub.ModelCard(text).data.to_dict().get("license")
    except Exception as error:  # of its YAML reader, too, whose classes huggingface_hub does not name
        raise InputError(f"the metadata of {file} cannot be read; add --licence, or remove the file") from error
    if found is None or (isinstance(found, str) and found != "other" and _LICENCE.fullmatch(found)):
        return found
    raise InputError(f"the licence in {file} cannot be kept; add --licence, or remove the file")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gapssg.report"),
        autoescape=False,  # Markdown; untrusted texts are quoted by `code`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": _code, "cell": lambda text: _code(text).replace("|", "\\|"), "percent": percent}
    return environment


def _metadata(run: TrainingRun, licence: str | None, evaluations: Sequence[KeptEvaluation], with_top5: bool) -> str:
    """Return the metadata as YAML."""
    hub = huggingface_hub("a model card")
    result = run.result
    tags = ["image-classification"]
    if isinstance(result, DistillResult):
        tags += ["knowledge-distillation", "data-free-knowledge-distillation", printable(result.method)]
    scores: dict[str, Scores | Trained] = {whole_name(each.data): each.scores for each in evaluations}
    if result.data and result.model.top1 is not None:
        scores[whole_name(result.data)] = result.model
    measured = [
        hub.EvalResult(
            task_type="image-classification",
            dataset_type=printable(public_name(data)),
            dataset_name=printable(public_name(data)),
            dataset_split="test",
            metric_type="accuracy",
            metric_value=value,
            metric_name=f"{name} accuracy after the last epoch",
        )
        for data, found in scores.items()
        for name, value in (("top-1", found.top1), ("top-5", found.top5 if with_top5 else None))
        if value is not None
    ]
    metadata: str = hub.ModelCardData(
        license=licence,
        library_name="gapssg",
        pipeline_tag="image-classification",
        tags=tags,
        model_name=printable(run.name) if measured else None,
        eval_results=measured or None,
    ).to_yaml()
    return metadata


def _code(text: str) -> str:
    """Quote an untrusted text as code, in which Markdown and HTML have no effect."""
    return f"`{printable(text).replace('`', chr(39))}`"
