from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gapssg import InputError, PretrainSettings, RunError
from gapssg.files import signature
from gapssg.runs.directory import (
    RunDirectory,
    SilentDisplay,
    Written,
    check_output,
    encode_png,
    pool_shards,
    take_from,
)
from gapssg.runs.events import Note, Started
from gapssg.synthesis.shards import PoolOrigin


def start(path: Path) -> RunDirectory:
    """Start a run that another one may replace."""
    run = hold(path)
    run.close()
    return run


SETTINGS = PretrainSettings.model_validate({"data": {"name": "digits"}, "model": {"name": "wrn16_1"}})


def hold(path: Path) -> RunDirectory:
    return RunDirectory(path, SETTINGS, SilentDisplay())


def test_a_run_is_replaced_only_on_request(tmp_path: Path):
    run = tmp_path / "run"
    with hold(run) as started:
        started.record(Note(message="here"))
    with pytest.raises(InputError, match="already holds a run; add --overwrite"):
        check_output(run, overwrite=False)
    check_output(run, overwrite=True)
    assert (run / "events.jsonl").exists()
    start(run)
    assert sorted(path.name for path in run.iterdir()) == [".lock", "settings.toml"]


def test_foreign_files_are_never_removed(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"holds files that are not a run's \(thesis.tex\)"):
        check_output(tmp_path, overwrite=True)


def test_a_kill_during_the_first_write_does_not_block_a_new_run(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("")
    (run / ".settings.toml.edb13452926f.tmp").write_text("data")
    check_output(run, overwrite=False)
    start(run)
    assert sorted(path.name for path in run.iterdir()) == [".lock", "settings.toml"]


def test_a_kill_while_a_run_is_replaced_leaves_a_replaceable_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "run"
    with hold(run) as started:
        started.record(Note(message="here"))
    (run / "result.json").write_text("{}")
    removed: list[str] = []
    unlink = os.unlink

    def interrupted(name: str, **options: Any) -> None:
        removed.append(name)
        if len(removed) == 4:  # the first two are of missing files
            raise KeyboardInterrupt
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(run)
    monkeypatch.undo()
    check_output(run, overwrite=True)


def test_foreign_files_in_folders_of_a_run_are_never_removed(tmp_path: Path):
    run = tmp_path / "run"
    start(run)
    (run / "samples").mkdir()
    (run / "samples" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"samples/thesis.tex"):
        check_output(run, overwrite=True)
    # File names of a run, but not a run.
    (tmp_path / "library" / "samples").mkdir(parents=True)
    (tmp_path / "library" / "samples" / "epoch-1.png").write_text("")
    with pytest.raises(InputError, match="not a run's"):
        check_output(tmp_path / "library", overwrite=True)


def test_temporary_files_of_killed_writes_do_not_block_a_run(tmp_path: Path):
    run = tmp_path / "run"
    start(run)
    (run / ".student.safetensors.ab_c1.tmp").write_text("")
    check_output(run, overwrite=True)
    start(run)
    assert sorted(path.name for path in run.iterdir()) == [".lock", "settings.toml"]


def test_a_run_never_replaces_what_it_reads(tmp_path: Path):
    run = tmp_path / "run"
    start(run)
    (run / "model.safetensors").write_text("")
    with pytest.raises(InputError, match=r"holds .*model.safetensors, which the run reads; name another"):
        check_output(run, overwrite=True, inputs=[run / "model.safetensors", None])


def test_an_invalid_file_name_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="File name too long"):
        check_output(tmp_path / ("x" * 300), overwrite=False)


def test_a_second_writer_is_refused_with_the_first_ones_process(tmp_path: Path):
    run = hold(tmp_path / "run")
    run.record(Note(message="here"))
    with pytest.raises(InputError, match=f"is being written by process {os.getpid()} on "):
        start(tmp_path / "run")
    with pytest.raises(InputError, match="is being written by"):
        RunDirectory(tmp_path / "run", SETTINGS, SilentDisplay(), resume_from=Written())
    assert (tmp_path / "run" / "events.jsonl").exists()
    run.close()
    start(tmp_path / "run")


def test_a_run_is_taken_from_a_process_that_is_cut_off_and_stops_at_its_next_write(tmp_path: Path):
    with RunDirectory(tmp_path, SETTINGS, SilentDisplay()) as cut_off:
        take_from(tmp_path, "process 1 on another")
        with pytest.raises(InputError, match="being written by process"):
            RunDirectory(tmp_path, SETTINGS, SilentDisplay())
        take_from(tmp_path, signature())
        with (
            RunDirectory(tmp_path, SETTINGS, SilentDisplay()),
            pytest.raises(RunError, match="no longer the directory that this process locked"),
        ):
            cut_off.record(Started(message="from the past"))
        take_from(tmp_path / "absent", signature())


def test_an_output_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        check_output(tmp_path / "file", overwrite=True)


def test_an_empty_directory_is_accepted(tmp_path: Path):
    check_output(tmp_path, overwrite=False)
    check_output(tmp_path / "absent" / "run", overwrite=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_has_the_encoded_pixels(channels):
    image = torch.randint(0, 256, (5, 7, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(encode_png(Image.fromarray(image.squeeze(2).numpy())))) as read:
        pixels = torch.from_numpy(np.asarray(read).copy()).view(5, 7, channels)
    assert torch.equal(pixels, image)


def test_the_shards_of_a_pool_are_listed_oldest_first(tmp_path: Path):
    origin = PoolOrigin("gapssg", "0" * 64)
    with hold(tmp_path / "run") as run:
        for epoch in (2, 1, *range(10, 2, -1)):
            run.write_pool_shard(epoch, torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), origin)
    names = [f"shard-{epoch:04d}.safetensors" for epoch in range(1, 11)]
    assert [path.name for path in pool_shards(tmp_path / "run")] == names
    assert [path.name for path in pool_shards(tmp_path / "run" / "pool")] == names
    with pytest.raises(InputError, match="holds no sample pool"):
        pool_shards(tmp_path)
    (tmp_path / "run" / "pool" / names[4]).unlink()
    with pytest.raises(InputError, match=r"run/pool lacks shard-0005.safetensors; put it back"):
        pool_shards(tmp_path / "run")
