"""Models go to the Hub and come from it, at a stand-in for its HTTP interface; the real one is not asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gapssg import DistillSettings, distill, load_model
from gapssg.errors import InputError, RunError
from gapssg.models.hub import local_file, parse_reference
from gapssg.models.model_file import save_model
from gapssg.runs.results.common import RESULT
from tests.conftest import write_teacher
from tests.hub import Hub, serving
from tests.program import gapssg, refusal
from tests.results import make_distill_result
from tests.run_fixtures import change
from tests.tiny import TINY_NOISE

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        # The stand-in takes large files by the LFS protocol, not by Xet.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run's student, its card, and files that nobody else should get."""
    run = tmp_path / "run"
    run.mkdir()
    file = write_teacher(run / "student.safetensors")
    (run / "README.md").write_text(f"---\nlicense: mit\n---\n# A model\nSHA-256: {load_model(file).sha256}\n")
    (run / RESULT).write_text(make_distill_result().model_copy(update={"failures": ()}).model_dump_json())
    (run / "settings.toml").write_text('teacher = "private"\n')
    return run


def is_private(created: dict[str, Any]) -> bool:
    """Return what a request to create a repository asks for; older versions of the library have a flag."""
    return bool(created.get("private")) or created.get("visibility") == "private"


def test_what_is_pushed_is_model_card_and_description_and_comes_back(hub: Hub, folder: Path):
    result = json.loads(gapssg("push", folder, "org/small", "--json").stdout)
    assert is_private(hub.created[0])
    (name,) = {name for name in hub.commits if not name.endswith("@main")}
    assert name == f"org/small@{result['revision']}"
    files = hub.commits[name]
    assert set(files) == {"student.safetensors", "README.md", "config.json"} == set(result["files"])
    assert files["student.safetensors"] == (folder / "student.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert (config["architecture"], config["num_classes"]) == ("wrn10_half", 10)
    assert str(folder.parent).encode() not in b"".join(files.values())
    back = load_model(result["reference"])
    assert back.sha256 == result["sha256"] == load_model(folder / "student.safetensors").sha256
    assert str(back.path) == f"hf-hub:org/small@{result['revision']}"


def test_a_student_that_is_usable_after_all_is_still_called_failed_on_the_hub(hub: Hub, folder: Path):
    sentence = "student.safetensors usable, but it holds the failures that its run found"
    assert sentence not in gapssg("push", folder, "org/small").stdout
    model = load_model(folder / "student.safetensors")
    save_model(folder / "student.safetensors", model.module, model.card.model_copy(update={"failures": ("x",)}))
    assert sentence in gapssg("push", folder, "org/small").stdout


def test_commands_take_references_and_a_revision_pins_them(hub: Hub, folder: Path, tmp_path: Path):
    first = hub.commit("org/small", {"model.safetensors": (folder / "student.safetensors").read_bytes()})
    found = json.loads(gapssg("eval", "hf-hub:org/small", "--data", "digits", "--json").stdout)
    assert found["models"][0]["file"] == "hf-hub:org/small"
    hub.commit("org/small", {"model.safetensors": b"something else"})
    assert "hf-hub:org/small" in refusal("inspect", "hf-hub:org/small")
    pinned = f"hf-hub:org/small@{first}"
    assert json.loads(gapssg("inspect", pinned, "--json").stdout)["sha256"] == found["models"][0]["sha256"]
    gapssg("export", pinned, "--to", "torchscript", "--output", tmp_path / "s.pt")
    assert (tmp_path / "s.pt").stat().st_size > 0


def test_a_teacher_of_the_hub_is_distilled_and_a_resumed_run_fetches_nothing(hub: Hub, folder: Path, tmp_path: Path):
    hub.commit("org/teacher", {"model.safetensors": (folder / "student.safetensors").read_bytes()})
    noise = {**TINY_NOISE, "student": {"name": "wrn10_half"}, "epochs": 1, "batch_size": 8}
    values = DistillSettings.model_validate({"teacher": "hf-hub:org/teacher", **noise})
    run = tmp_path / "distilled"
    assert distill(values, run).teacher.file == "hf-hub:org/teacher"
    settings = run / "settings.toml"
    settings.write_text(settings.read_text().replace("org/teacher", "org/other"))
    hub.commit("org/other", {"model.safetensors": b""})
    hub.requests.clear()
    assert "hf-hub:org/other is not in the cache" in refusal("distill", "--resume", run, "--epochs", 2)
    assert hub.requests == []


def test_downloaded_files_are_untrusted(hub: Hub, folder: Path):
    content = bytearray((folder / "student.safetensors").read_bytes())
    content[-1] ^= 1
    hub.commit("org/damaged", {"model.safetensors": bytes(content)})
    with pytest.raises(InputError, match="hf-hub:org/damaged is damaged"):
        load_model("hf-hub:org/damaged")
    hub.commit("org/pickle", {"pytorch_model.bin": b"x", "model.bin": b"x"})
    with pytest.raises(InputError, match=r"has neither model.safetensors nor student.safetensors"):
        load_model("hf-hub:org/pickle")
    assert not any(path.endswith(".bin") for _, path in hub.requests)


def test_a_file_that_is_too_large_is_not_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.commit("org/large", {"model.safetensors": bytes(2000)})
    monkeypatch.setattr("gapssg.models.hub.LARGEST_FILE", 1000)
    with pytest.raises(InputError, match="has 2000 bytes, more than 1,000"):
        load_model("hf-hub:org/large")
    assert {method for method, _ in hub.requests} == {"HEAD"}


def test_without_the_network_the_cache_serves(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    hub.commit("org/small", {"model.safetensors": (folder / "student.safetensors").read_bytes()})
    expected = load_model("hf-hub:org/small").sha256
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("hf-hub:org/small").sha256 == expected
    with pytest.raises(RunError, match="hf-hub:org/other cannot be downloaded and is not in the cache"):
        load_model("hf-hub:org/other")


def test_a_commit_in_the_cache_is_taken_without_a_request(hub: Hub, folder: Path):
    student = (folder / "student.safetensors").read_bytes()
    for name in ("model.safetensors", "student.safetensors"):
        commit = hub.commit(f"org/{name[0]}", {name: student})
        reference = f"hf-hub:org/{name[0]}@{commit}"
        expected = load_model(reference).sha256
        hub.requests.clear()
        assert load_model(reference).sha256 == expected
        assert hub.requests == []


def test_without_a_connection_no_other_file_is_taken_and_nothing_is_tried_twice(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from huggingface_hub import hf_hub_download

    content = (folder / "student.safetensors").read_bytes()
    hub.commit("org/student", {"student.safetensors": content})
    hub.commit("org/both", {"model.safetensors": content, "student.safetensors": content})
    local_file(Path("hf-hub:org/student"))
    hf_hub_download("org/both", "student.safetensors", endpoint=hub.address)  # by another program
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    assert local_file(Path("hf-hub:org/student")).read_bytes() == content
    assert local_file(Path("hf-hub:org/student"), fetch=False).read_bytes() == content
    with pytest.raises(RunError, match="hf-hub:org/both cannot be downloaded and is not in the cache"):
        local_file(Path("hf-hub:org/both"))
    with pytest.raises(InputError, match="hf-hub:org/both is not in the cache, and what a run directory names"):
        local_file(Path("hf-hub:org/both"), fetch=False)
    assert not [record for record in caplog.records if "etry" in record.getMessage()]


@pytest.mark.parametrize("text", ["hf-hub:name", "hf-hub:a/b/c", "hf-hub:../x", "hf-hub:a/b@", "hf-hub:a/b@../c"])
def test_malformed_references_are_refused_before_anything_is_asked(hub: Hub, text: str):
    said = refusal("inspect", text)
    assert "write ORG/NAME" in said or "write hf-hub:ORG/NAME@REVISION" in said
    assert hub.requests == []


def test_references_name_a_repository_and_a_revision():
    assert parse_reference("hf-hub:org/name") == ("org/name", None)
    assert parse_reference("hf-hub:org/name@v1.0") == ("org/name", "v1.0")
    assert local_file(Path("some/model.safetensors")) == Path("some/model.safetensors")


def test_what_cannot_be_pushed_is_refused_in_one_sentence(hub: Hub, folder: Path, tmp_path: Path):
    assert "hf-hub:org/none does not exist on the Hub" in refusal("inspect", "hf-hub:org/none")
    assert "write ORG/NAME" in refusal("push", folder, "small")
    (tmp_path / "empty").mkdir()
    assert "name a finished run" in refusal("push", tmp_path / "empty", "org/small")
    os.rename(folder / "README.md", folder / "card.md")
    assert f"write the model card first: gapssg card {folder}" in refusal("push", folder, "org/small")
    (folder / "README.md").symlink_to(folder / "settings.toml")
    assert "README.md" in refusal("push", folder, "org/small")
    assert hub.created == [] and hub.commits == {}


def test_a_refusal_of_the_hub_and_a_failed_student_are_told(hub: Hub, folder: Path):
    change(folder / RESULT, lambda result: result.update(failures=["it is right on none"]))
    (folder / "README.md").write_text("of another model")
    shown = gapssg("push", folder, "org/small", "--public")
    said = shown.stdout + shown.stderr
    assert "is not usable: it is right on none" in said and "is it its card?" in said
    assert not is_private(hub.created[0])
    hub.refuses = True
    finished = gapssg("push", folder, "org/small", status=1)
    assert "cannot push to org/small" in finished.stderr and len(finished.stderr.splitlines()) == 1


def test_a_repository_with_another_model_is_refused(hub: Hub, folder: Path):
    hub.commit("org/teacher", {"model.safetensors": b"another"})
    assert "org/teacher has model.safetensors, another model" in refusal("push", folder, "org/teacher")
    assert set(hub.commits["org/teacher@main"]) == {"model.safetensors"}
