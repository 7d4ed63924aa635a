"""The model files that references to the Hugging Face Hub stand for.

A reference, `hf-hub:ORG/NAME` or `hf-hub:ORG/NAME@REVISION`, stands wherever the path of a model file does. Its file is
downloaded to the cache of `huggingface_hub`, and is as untrusted as any other. Importing this module imports neither
torch nor `huggingface_hub`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from gapssg.errors import GapssgError, InputError, RunError, first_line, import_extra, shortened
from gapssg.files import LARGEST_FILE

PREFIX = "hf-hub:"
MODEL_FILES = ("model.safetensors", "student.safetensors")
"""The model files of a repository, of which the first that exists is taken."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def is_hub_reference(path: str | Path) -> bool:
    """Tell whether a path is a reference to the Hub instead."""
    return str(path).startswith(PREFIX)


def check_repository(name: str) -> str:
    """Return the name of a repository; raise `InputError` if it has not the form ORG/NAME."""
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"{shortened(repr(name))} is not a repository of the Hub; write ORG/NAME")
    return name


def parse_reference(path: str | Path) -> tuple[str, str | None]:
    """Return repository and revision (or None) of a reference; raise `InputError` if it is malformed."""
    name, at, revision = str(path).removeprefix(PREFIX).partition("@")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"{shortened(str(path))} does not name a revision; write {PREFIX}ORG/NAME@REVISION")
    return check_repository(name), revision or None


def local_file(path: Path, *, fetch: bool = True) -> Path:
    """Return the file that a reference stands for, after downloading what the cache lacks; of a path, the path itself.

    Without `fetch` only the cache is looked up: what an untrusted directory names must not be downloaded. A commit that
    is in the cache needs no connection, and without one the cache is looked up for every revision.

    Raises:
        InputError: The reference is malformed, there is no such model on the Hub, it is too large, or
            `huggingface_hub` is not installed.
        RunError: It cannot be downloaded.
    """
    if not is_hub_reference(path):
        return path
    repository, revision = parse_reference(path)
    hub = huggingface_hub(str(path))
    is_pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    for name in MODEL_FILES:
        known = hub.try_to_load_from_cache(repository, name, revision=revision)
        if not fetch or (is_pinned and known is not None) or not _is_reachable(hub, repository, name, revision, path):
            if isinstance(known, str):
                return Path(known).resolve()
            if known is None:  # not another file, because this one may exist
                raise _not_in_cache(path, fetch)
            continue  # the cache has recorded that there is no such file
        try:
            return Path(hub.hf_hub_download(repository, name, revision=revision, endpoint=endpoint())).resolve()
        except hub.errors.LocalEntryNotFoundError as error:  # the connection was lost
            raise _not_in_cache(path, fetch) from error
        except hub.errors.EntryNotFoundError:
            continue
        except Exception as error:  # also of requests or httpx, by the version of the library
            raise RunError(f"{path} cannot be downloaded: {first_line(error, 300)}") from error
    raise InputError(f"{path} has neither {' nor '.join(MODEL_FILES)}; name a repository that has one")


def _not_in_cache(path: Path, fetch: bool) -> GapssgError:
    if fetch:
        return RunError(f"{path} cannot be downloaded and is not in the cache; check the network connection")
    return InputError(
        f"{path} is not in the cache, and what a run directory names is not downloaded; name it by --teacher"
    )


def _is_reachable(hub: Any, repository: str, name: str, revision: str | None, path: Path) -> bool:
    """Tell whether the Hub answers, by one attempt: a download would try again and again, and print that.

    Raises `InputError` if it has no such repository or revision, or the file is too large, and `RunError` if it refuses
    to answer. A file that does not exist is left to the download, which records that in the cache.
    """
    errors = hub.errors
    try:
        url = hub.hf_hub_url(repository, name, revision=revision, endpoint=endpoint())
        size = hub.get_hf_file_metadata(url, endpoint=endpoint()).size
    except errors.EntryNotFoundError:
        return True
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(f"{path} does not exist on the Hub, or needs a login (hf auth login)") from error
    except errors.HfHubHTTPError as error:
        raise RunError(f"{path} cannot be downloaded: {first_line(error, 300)}") from error
    except Exception:  # without a connection, the cache may have it
        return False
    if size is None:
        raise InputError(f"the Hub does not say how large {path} is; download it and name the file")
    if size > LARGEST_FILE:
        raise InputError(f"{path} has {size} bytes, more than {LARGEST_FILE:,}")
    return True


def huggingface_hub(what: str) -> Any:
    """Import `huggingface_hub`, which `what` needs; raise `InputError` if it is not installed."""
    hub = import_extra("huggingface_hub", "card", what)
    import_extra("huggingface_hub.errors", "card", what)
    return hub


def endpoint() -> str | None:
    """Return the address of the Hub if HF_ENDPOINT sets another than the public one."""
    return os.environ.get("HF_ENDPOINT")
