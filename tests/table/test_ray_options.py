"""What `gapssg table --ray` refuses before it knows a cluster."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from gapssg.errors import InputError
from gapssg.table import ray_cluster
from tests.program import refusal

TABLE = ["--rows", "digits", "--methods", "gapssg"]


def test_options_of_a_cluster_need_its_address(tmp_path: Path):
    for option in ("--gpus-per-run", "--cpus-per-run"):
        assert refusal("table", tmp_path / "table", *TABLE, option, 0.5) == (
            f"{option} is for runs on a cluster; add --ray and its address, or leave it out"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_ray_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    sentence = refusal("table", tmp_path / "table", *TABLE, "--ray", "auto")
    assert sentence == "--ray needs ray, which is not installed: pip install 'gapssg[ray]'"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["cluster", "cluster:", ":6379", "ray://cluster", "cluster:6379/x"])
def test_an_address_has_a_host_and_a_port(address: str):
    with pytest.raises(InputError, match=r"is no address; use auto, HOST:PORT or ray://HOST:PORT"):
        ray_cluster._check_that_it_answers(address)


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_that_does_not_answer_is_one_sentence(prefix: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{prefix}127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"^--ray {address} does not answer \(Connection refused\); start Ray"):
            ray_cluster._check_that_it_answers(address)


def test_an_address_that_is_no_cluster_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_cluster, "_SECONDS_TO_CONNECT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match="has not answered as a Ray cluster for"):
            ray_cluster._check_that_it_answers(address)
