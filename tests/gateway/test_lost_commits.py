"""The connection to PostgreSQL breaks between a commit and its answer: the commit stands, and whoever asked for it can't know.

Nothing of that is specific to a statement, so every second or third commit of a whole gateway is treated so, as drawn lots have
it: with each n-th, two threads that commit by turns would meet it for ever at the same one.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.config import load
from app.jobs.errors import DatabaseUnavailable
from app.simulator import SimulatorServer
from tests.inprocess import DEADLINE, Gateway, hurry, stats, until
from tests.proxy import Proxy

_SOCKET = ".s.PGSQL.5432"
_BUFFER = 1 << 16


class Relay(Proxy):
    """Stands between a gateway and PostgreSQL's socket, and swallows the answer to one of n commits with the connection."""

    def __init__(self, folder: Path, server: Path) -> None:
        self._server = server
        self._lots = random.Random(1)
        #: One of so many answers to commits is swallowed; 0 lets all pass.
        self.one_of = 0
        self.swallowed = 0
        super().__init__(socket.create_server(str(folder / _SOCKET), family=socket.AF_UNIX))

    def serve(self, client: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self._server))
            while self._pass_on(client, server):
                pass

    def _pass_on(self, client: socket.socket, server: socket.socket) -> bool:
        readable, _, _ = select.select([client, server], [], [])
        for source, target in ((client, server), (server, client)):
            if source not in readable:
                continue
            data = source.recv(_BUFFER)
            target.sendall(data)
            if not data or (source is client and b"COMMIT" in data and self._swallows(server)):
                return False
        return True

    def _swallows(self, server: socket.socket) -> bool:
        if not self.one_of or self._lots.randrange(self.one_of):
            return False
        # An answer means that it is committed.
        assert server.recv(_BUFFER)
        self.swallowed += 1
        return True


@pytest.fixture
def relay(postgresql: str, tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(tmp_path, Path(postgresql.partition("host=")[2]) / _SOCKET)
    yield relay
    relay.close()


@pytest.fixture
def url(postgresql: str, tmp_path: Path, relay: Relay) -> Iterator[str]:
    """A database of this test's own, as it is reached through the relay."""
    admin = create_engine(load({"SDG_DATABASE_URL": postgresql}, tmp_path).database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE relayed"))
    yield f"postgresql://gateway@/relayed?host={tmp_path}"
    with admin.connect() as connection:
        # It refuses while somebody is still connected.
        connection.execute(text("DROP DATABASE relayed"))
    admin.dispose()


def post_until_it_ends(gateway: Gateway, number: int) -> dict[str, Any]:
    """Repeat a POST under one Idempotency-Key until its answer is the end of the job."""
    kind = "img2img" if number % 3 == 2 else "txt2img"
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            view = gateway.post(kind, wait=DEADLINE, key=f"key-{number}", id=f"u{number % 2}", seed=str(1000 + number))
            if view["status"] not in ("queued", "running"):
                return view


@pytest.mark.parametrize("one_of", [2, 3])
def test_the_answer_to_any_commit_may_be_lost(
    tmp_path: Path, url: str, relay: Relay, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch, one_of: int
) -> None:
    hurry(monkeypatch)
    # A file in the place of a template: PostgreSQL's tables are made by the gateway itself.
    empty = tmp_path / "empty"
    empty.touch()
    with Gateway(tmp_path, empty, [server.url], database_url=url) as gateway:
        gateway.start()
        relay.one_of = one_of
        with ThreadPoolExecutor(9) as pool:
            views = list(pool.map(lambda number: post_until_it_ends(gateway, number), range(9)))
        relay.one_of = 0
        assert relay.swallowed >= 9
        assert [view["status"] for view in views] == ["succeeded"] * 9, [view["error"] for view in views]
        assert gateway.sql("SELECT count(*), sum(attempts) FROM jobs") == [(9, 0)]
        assert gateway.sql("SELECT unfinished FROM clock") == [(0,)]
        until(lambda: gateway.sql("SELECT state, owner FROM slots") == [("clean", None)], "the slot is free")
        verify = gateway.services.maintenance.verify()
        assert (verify.count, verify.problems) == (9, [])
        assert gateway.services.maintenance.sweep().count == 0
        assert stats(server)["max_in_flight"] == 1
        assert gateway.post()["status"] == "succeeded"
