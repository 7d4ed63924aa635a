"""`push`: uploads model, model card and description of a finished run to the Hugging Face Hub."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from gapssg._version import __version__
from gapssg.errors import GapssgError, InputError, RunError, first_line
from gapssg.files import LARGEST_FILE, is_file, read_bounded, user_path
from gapssg.models.description import ModelCard
from gapssg.models.hub import MODEL_FILES, PREFIX, check_repository, endpoint, huggingface_hub
from gapssg.models.model_path import final_weights
from gapssg.runs.directory import CARD, Display, SilentDisplay
from gapssg.runs.events import Warned
from gapssg.runs.failures import warn_of_failure
from gapssg.runs.results.report import PushResult
from gapssg.safe_paths import inside

CONFIG = "config.json"
_LARGEST_CARD = 2**20


def push_model(folder: Path, repository: str, *, public: bool = False, display: Display | None = None) -> PushResult:
    """Upload the model file of a folder, its README.md, and config.json, in one commit.

    `config.json` has the description of the model file: architecture, images, classes, normalisation, origin; no path
    of this machine. Nothing else of the folder is read.

    Args:
        folder: The directory of a finished run, or a folder with a model file and its card.
        repository: `ORG/NAME`, created if it does not exist.
        public: Whether a repository that is created is public; an existing one is left as it is.
        display: Is told what is wrong with the model.

    Raises:
        InputError: The folder has no model file or no card, or one cannot be read, the name is malformed, or
            `huggingface_hub` is not installed.
        RunError: The Hub refuses the upload, or cannot be reached.
    """
    folder, display = user_path(folder), display or SilentDisplay()
    check_repository(repository)
    hub = huggingface_hub("push")
    file, readme = final_weights(folder), inside(folder) / CARD
    if not is_file(readme):
        raise InputError(f"{folder} has no {CARD}; write the model card first: gapssg card {shlex.quote(str(folder))}")
    from gapssg.models.model_file import read_card

    card, sha256 = read_card(file)
    config = {"library_name": "gapssg", **card.model_dump(mode="json", exclude={"graph"})}
    contents = {
        file.name: read_bounded(file, LARGEST_FILE),
        CARD: read_bounded(readme, _LARGEST_CARD),
        CONFIG: (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode(),
    }
    _warn_of_failures(file, card, display)
    if sha256.encode() not in contents[CARD]:
        display.event(Warned(epoch=0, message=f"{readme} does not name the SHA-256 of {file.name}: is it its card?"))
    try:
        interface = hub.HfApi(endpoint=endpoint(), library_name="gapssg", library_version=__version__)
        interface.create_repo(repository, private=not public, exist_ok=True)
        others = [name for name in MODEL_FILES if name != file.name and interface.file_exists(repository, name)]
        if others:  # a reference would load it
            raise InputError(f"{repository} has {others[0]}, another model; delete it there, or push elsewhere")
        commit = interface.create_commit(
            repository,
            operations=[hub.CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=f"Upload by gapssg {__version__}",
        )
    except GapssgError:
        raise
    except Exception as error:  # also of requests or httpx, by the version of the library
        raise RunError(
            f"cannot push to {repository}: {first_line(error, 300)}; "
            "log in with a token that may write there (hf auth login)"
        ) from error
    return PushResult(
        repository=repository,
        revision=commit.oid,
        reference=f"{PREFIX}{repository}@{commit.oid}",
        sha256=sha256,
        files=tuple(contents),
    )


def _warn_of_failures(file: Path, card: ModelCard, display: Display) -> None:
    if warn_of_failure(file, display) == () and card.failures:
        sentence = f"real images have since shown {file.name} usable, but it holds the failures that its run found"
        display.event(Warned(epoch=0, message=f"{sentence}; gapssg calls the model of the Hub FAILED"))
