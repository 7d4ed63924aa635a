"""The connections by which processes know whether the others are still there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch._C._distributed_c10d import HashStore

from gapssg.core.liveness import Liveness


@pytest.fixture
def ranks() -> Iterator[list[Liveness]]:
    """Those of three processes."""
    store = HashStore()
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda rank: Liveness(store, rank, 3, "127.0.0.1"), range(3)))
    yield found
    for each in found:
        for connection in each._connections.values():
            connection.close()


def test_an_end_is_seen_by_the_first_rank_and_its_end_by_all(ranks: list[Liveness]):
    assert [each.ended() for each in ranks] == [set(), set(), set()]
    ranks[2]._connections[0].close()
    assert ranks[0].ended() == {2}
    for connection in ranks[0]._connections.values():
        connection.close()
    assert ranks[1].ended() == {0}
    assert not ranks[1].has_lost_store


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="the name on Linux")
def test_a_silent_machine_is_given_up_within_30_seconds(ranks: list[Liveness], monkeypatch: pytest.MonkeyPatch):
    connections = [one for each in ranks for one in each._connections.values()]
    assert len(connections) == 4
    for one in connections:
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, interval, count = (one.getsockopt(socket.IPPROTO_TCP, name) for name in names)
        assert idle + interval * count < 30

    class Silent:
        def recv(self, _: int) -> bytes:
            raise TimeoutError

    monkeypatch.setitem(ranks[1]._connections, 0, Silent())
    assert ranks[1].ended() == {0}
    assert ranks[1].has_lost_store
