"""Whether the other processes of a run are still there."""

from __future__ import annotations

import socket
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

_PORT = "liveness"
_SECONDS_TO_CONNECT, _SECONDS_TO_SPEAK = 120.0, 5.0
# A machine that is silent for 5 + 3 * 5 seconds is gone. Linux and macOS name the first option differently.
_OF_TCP = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Liveness:
    """Connections of rank 0 with each other rank, on which nothing is sent but the rank.

    The operating system closes the connection of a process that ends, however it does. It answers for one that is
    stopped or busy, which a heartbeat could not tell from a dead one, and gives up one whose machine is silent.

    Attributes:
        has_lost_store: Whether the machine of rank 0 is silent, and with it the store, which would be waited for.
    """

    has_lost_store = False

    def __init__(self, store: Store, rank: int, world: int, host: str) -> None:
        """Connect by way of a store that all share; `host` is the machine of rank 0. Raises `OSError`."""
        self._connections: dict[int, socket.socket] = {}
        if rank:
            own = socket.create_connection((host, int(store.get(_PORT))), _SECONDS_TO_CONNECT)
            own.sendall(rank.to_bytes(4, "big"))
            self._connections[0] = own
        else:
            self._accept(store, world)
        for each in self._connections.values():
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _OF_TCP.items():
                if hasattr(socket, name):
                    each.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def _accept(self, store: Store, world: int) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, backlog=world, dualstack_ipv6=dual) as server:
            server.settimeout(_SECONDS_TO_CONNECT)
            store.set(_PORT, str(server.getsockname()[1]))
            while len(self._connections) < world - 1:
                connection, _ = server.accept()
                connection.settimeout(_SECONDS_TO_SPEAK)
                with suppress(OSError):  # of another program that tries the port
                    rank = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
                    if rank in range(1, world):
                        self._connections.setdefault(rank, connection)

    def ended(self) -> set[int]:
        """Return the ranks that have ended: rank 0 sees all, the others only rank 0."""
        return {rank for rank, connection in self._connections.items() if self._is_closed(connection, rank)}

    def _is_closed(self, connection: socket.socket, rank: int) -> bool:
        try:
            return not connection.recv(1)
        except BlockingIOError:  # nothing has come, and the connection stands
            return False
        except ConnectionError:
            return True
        except OSError:
            self.has_lost_store = rank == 0
            return True
