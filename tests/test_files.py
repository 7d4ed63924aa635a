from __future__ import annotations

import fcntl
import os
import re
import stat
from pathlib import Path

import pytest

from gapssg.errors import InputError, RunError
from gapssg.files import (
    append,
    canonical_json,
    check_output_file,
    check_writable,
    entries_in,
    is_file,
    is_folder,
    lock,
    make_folder,
    numbered_files,
    open_regular,
    parse_json,
    read_bounded,
    remove,
    sha256_of_contents,
    sha256_of_file,
    staged,
    staged_folder,
    write_atomically,
)
from gapssg.safe_paths import inside


def test_equal_values_have_equal_json():
    assert canonical_json({"b": 1, "a": [1.5]}) == canonical_json({"a": [1.5], "b": 1}) == '{"a":[1.5],"b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def test_numbered_files_are_in_the_order_of_their_numbers(tmp_path: Path):
    for name in ("shard-10", "shard-9", "shard-0002", "shard-", "other-1", "shard-1.tmp"):
        (tmp_path / name).touch()
    found = numbered_files(inside(tmp_path), re.compile(r"shard-(\d+)"))
    names = {2: "shard-0002", 9: "shard-9", 10: "shard-10"}
    assert [(number, file.name) for number, file in found.items()] == list(names.items())
    assert numbered_files(inside(tmp_path) / "missing", re.compile(r"(\d+)")) == {}


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_a_staged_file_is_renamed_only_if_the_block_succeeds(tmp_path: Path):
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

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", '{"a": "\\ud800"}', '{"\\udfff": 1}'])
def test_invalid_json_and_lone_surrogates_are_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_writing_to_a_missing_folder_is_one_sentence(tmp_path: Path):
    with pytest.raises(RunError, match="cannot write"):
        write_atomically(tmp_path / "absent" / "file", b"new")


def test_checking_an_output_leaves_nothing_behind(tmp_path: Path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        check_writable(tmp_path / "file" / "run")


def test_an_unwritable_output_is_an_input_error():
    # /proc is a folder in which not even root can make a file.
    with pytest.raises(InputError, match="cannot write to /proc/run"):
        check_writable(Path("/proc/run"))


def test_an_invalid_name_is_not_a_file(tmp_path: Path):
    (tmp_path / "a").touch()
    assert is_file(tmp_path / "a")
    assert is_file(str(tmp_path / "a"))
    assert not is_file(tmp_path)
    assert not is_file("a" * 300)


def test_an_output_file_is_new_or_replaceable_and_its_folder_exists(tmp_path: Path):
    old, new, deep = tmp_path / "old", tmp_path / "new", tmp_path / "no" / "where" / "new"
    old.touch()
    check_output_file(new, overwrite=False)
    check_output_file(old, overwrite=True)
    check_output_file(deep, overwrite=False, makes_folder=True)
    for path, overwrite, sentence in (
        (old, False, "already exists; add --overwrite to replace it"),
        (tmp_path, True, "is a folder; name the file to write"),
        (deep, True, f"the folder {deep.parent} does not exist; create it first"),
        (old / "new", True, f"the folder {old} does not exist; create it first"),
        (tmp_path / ("a" * 300), True, "File name too long; choose another --output"),
    ):
        with pytest.raises(InputError, match=sentence):
            check_output_file(path, overwrite)
    assert list(tmp_path.iterdir()) == [old]


def test_a_name_too_long_for_a_temporary_file_is_refused_before_the_work(tmp_path: Path):
    check_output_file(tmp_path / ("x" * 237), overwrite=False)
    write_atomically(tmp_path / ("x" * 237), b"")
    with pytest.raises(InputError, match="this name is too long"):
        check_output_file(tmp_path / ("x" * 238), overwrite=False)


@pytest.mark.parametrize("held", [False, True])
def test_temporary_files_of_killed_writers_are_removed_and_those_of_live_ones_are_not(tmp_path: Path, held: bool):
    dead, living, other = (tmp_path / f".{name}.0123456789ab.tmp" for name in ("file", "file2", "notes"))
    for path in (dead, living, other):
        path.write_text("")
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if held:
            lock(tmp_path / ".lock").close()
        else:
            write_atomically(tmp_path / "file", b"new")
            write_atomically(tmp_path / "file2", b"new")
        assert (dead.exists(), living.exists(), other.exists()) == (False, True, not held)


def test_a_temporary_file_removed_before_it_was_locked_is_created_again(tmp_path: Path, monkeypatch):
    flock = fcntl.flock
    taken: list[Path] = []

    def late(handle: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_new_folder_above_a_new_one_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    make_folder(tmp_path / "a" / "b" / "c")
    assert flushed == [path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]
    flushed.clear()
    make_folder(tmp_path / "a" / "b")
    assert flushed == []
    append(tmp_path / "new", b"line")
    append(tmp_path / "new", b"line")
    file = (tmp_path / "new").stat().st_ino
    assert flushed == [file, tmp_path.stat().st_ino, file]


def plant(path: Path, outside: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"file": outside / "secret", "folder": outside, "device": Path("/dev/zero")}[kind])


@pytest.mark.parametrize("kind", ["pipe", "file", "folder", "device"])
@pytest.mark.parametrize("name", ["file", "folder/file"])
def test_an_inside_path_follows_no_link_and_opens_no_pipe_or_device(tmp_path: Path, kind: str, name: str):
    outside, path = tmp_path / "outside", inside(tmp_path / "root") / name
    outside.mkdir()
    (outside / "secret").write_text("secret")
    path.parent.mkdir(parents=True)
    plant(path, outside, kind)
    uses = [
        lambda: read_bounded(path, 10),
        lambda: open_regular(path, 10),
        lambda: sha256_of_file(path, 10),
        lambda: is_file(path),
        lambda: is_folder(path),
        lambda: entries_in(path),
        lambda: append(path, b"x"),
        lambda: make_folder(path / "new"),
        lambda: write_atomically(path / "new", b"x"),
        lambda: remove(path / "secret"),
        lambda: lock(path),
    ]
    for use in uses:
        with pytest.raises(InputError, match=r" is (a symbolic link|a pipe, a socket or a device) where a f"):
            use()
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("name", ["../outside/secret", "/etc/hostname", "a/../../outside/secret"])
def test_a_path_that_leaves_its_directory_is_refused(tmp_path: Path, name: str):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "root" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="is not inside"):
        read_bounded(inside(tmp_path / "root") / name, 100)


def test_paths_derived_from_an_inside_path_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = inside(Path("run")) / "pool" / "shard"
    for neighbour in (file.with_name("other"), file.parent / "other", file.with_suffix(".other")):
        assert neighbour.below == ("pool", neighbour.name)


def test_a_link_to_the_directory_itself_is_followed_because_the_user_named_it(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    path = inside(tmp_path / "link") / "file"
    assert read_bounded(path, 10) == b"text"
    write_atomically(path, b"new")
    assert (tmp_path / "root" / "file").read_bytes() == b"new"
    assert (path.parent / "file", inside(path)) == (path, path)


def test_a_file_with_a_second_name_is_not_appended_to(tmp_path: Path):
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", tmp_path / "file")
    with pytest.raises(InputError, match="has a second hard link"):
        append(inside(tmp_path) / "file", b"x")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    files = {"a": b"one", "deep/er/b": b"two"}
    with pytest.raises(InputError, match="no"), staged_folder(tmp_path / "folder", files) as staged_at:
        assert {name: (staged_at / name).read_bytes() for name in files} == files
        assert not (tmp_path / "folder").exists()
        raise InputError("no")
    assert list(tmp_path.iterdir()) == []
    with staged_folder(tmp_path / "folder", files):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert {name: (tmp_path / "folder" / name).read_bytes() for name in files} == files


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path):
    with (
        pytest.raises(RunError, match="cannot write"),
        staged_folder(tmp_path / "folder", {"a": b"mine"}),
    ):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a").write_bytes(b"theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"theirs"


def test_a_folder_of_a_killed_writer_is_removed_by_the_next(tmp_path: Path):
    abandoned, other = tmp_path / ".folder.0123456789ab.tmp", tmp_path / ".another.0123456789ab.tmp"
    for folder in (abandoned, other):
        folder.mkdir()
        (folder / "a").write_bytes(b"half")
    with staged_folder(tmp_path / "folder", {"a": b"whole"}) as alive:
        with staged_folder(tmp_path / "folder2", {"a": b"whole"}):
            pass
        assert alive.exists()
        with pytest.raises(RunError), staged_folder(tmp_path / "folder", {"a": b"second"}):
            assert alive.exists()
            (tmp_path / "folder").mkdir()
            (tmp_path / "folder" / "b").touch()
        (tmp_path / "folder" / "b").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "folder", "folder2"]


def test_the_digest_of_one_file_is_that_of_its_contents(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"content")
    assert sha256_of_contents({"": b"content"}) == sha256_of_file(tmp_path / "file", 10)
    assert sha256_of_contents({"b": b"2", "a": b"1"}) == sha256_of_contents({"": b"12"})
