from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gapssg.errors import InputError, RunError
from gapssg.files import (
    canonical_json,
    check_output_file,
    check_writable,
    is_file,
    parse_json,
    staged,
    write_atomically,
)


def test_equal_values_have_equal_json():
    assert canonical_json({"b": 1, "a": [1.5]}) == canonical_json({"a": [1.5], "b": 1}) == '{"a":[1.5],"b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_a_staged_file_is_renamed_only_if_the_block_that_tries_it_out_ends(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="not what it should be"), staged(path, b"new") as temporary:
        assert (temporary.read_bytes(), path.read_bytes()) == (b"new", b"old")
        raise InputError("not what it should be")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with staged(path, b"new"):
        pass
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", '{"a": "\\ud800"}', '{"\\udfff": 1}'])
def test_what_is_no_json_or_no_text_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_a_folder_that_has_vanished_is_one_sentence(tmp_path: Path):
    with pytest.raises(RunError, match="cannot write"):
        write_atomically(tmp_path / "absent" / "file", b"new")


def test_checking_an_output_leaves_nothing_behind(tmp_path: Path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        check_writable(tmp_path / "file" / "run")


def test_an_unwritable_output_is_bad_input():
    # /proc is a folder in which not even root can make a file.
    with pytest.raises(InputError, match="cannot write to /proc/run"):
        check_writable(Path("/proc/run"))


def test_what_no_file_can_be_called_is_no_file(tmp_path: Path):
    (tmp_path / "a").touch()
    assert is_file(tmp_path / "a")
    assert is_file(str(tmp_path / "a"))
    assert not is_file(tmp_path)
    assert not is_file("a" * 300)


def test_a_file_of_output_is_new_or_may_be_replaced_and_lies_in_a_folder_that_is_there(tmp_path: Path):
    old, new, deep = tmp_path / "old", tmp_path / "new", tmp_path / "no" / "where" / "new"
    old.touch()
    check_output_file(new, overwrite=False)
    check_output_file(old, overwrite=True)
    check_output_file(deep, overwrite=False, makes_folder=True)
    for path, overwrite, sentence in (
        (old, False, "already exists; add --overwrite to replace it"),
        (tmp_path, True, "is a folder; name the file to write"),
        (deep, True, f"there is no folder {deep.parent}; make it first"),
        (old / "new", True, f"there is no folder {old}; make it first"),
        (tmp_path / ("a" * 300), True, "File name too long; choose another --output"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_output_file(path, overwrite)
    assert list(tmp_path.iterdir()) == [old]


def test_a_name_that_leaves_no_room_for_a_temporary_one_is_refused_before_the_work(tmp_path: Path):
    check_output_file(tmp_path / ("x" * 237), overwrite=False)
    write_atomically(tmp_path / ("x" * 237), b"")
    with pytest.raises(InputError, match="this name is too long"):
        check_output_file(tmp_path / ("x" * 238), overwrite=False)
