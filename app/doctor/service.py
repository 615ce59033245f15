"""The gateway as it runs: whether it answers, its workers, its queue, its clock, and who is let in."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Final

from app.config import Config, is_loopback_port, without_secrets
from app.doctor.findings import About, Check, Finding
from app.doctor.storage import Storage
from app.gateway.generate import restarts_needed
from app.jobs.inspection import Inspection
from app.jobs.queue import Queue
from app.jobs.slots import Slots
from app.jobs.tokens import Tokens

#: Seconds by which two clocks may differ.
CLOCK_SECONDS: Final = 10.0
CLOCK_ADVICE: Final = "Keep the clocks of both with NTP (timedatectl), and correct the one that is wrong."
_ANSWER_SECONDS: Final = 5.0
_UNIX: Final = "unix:"
#: Addresses that stand for all of a machine, and where it is asked itself.
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 -- nothing listens here


class Service:
    """Checks of a gateway that runs, and of what it says to its database."""

    def __init__(self, config: Config, storage: Storage) -> None:
        self._config = config
        self._storage = storage

    def checks(self) -> Iterator[Check]:
        """All of them."""
        yield Check("clock", self._clock, ("SDG_DATABASE_URL",))
        yield Check("gateway", self._gateway, ("SDG_BIND",))
        yield Check("worker", self._worker, ("SDG_DATABASE_URL", "SDG_BIND", "SDG_HOST_ID"))
        yield Check("queue", self._queue, ("SDG_DATABASE_URL",))
        yield Check("access", self._access, ("SDG_DATABASE_URL", "SDG_BIND", "SDG_AUTH", "SDG_PUBLIC_URL", "SDG_ACCEL"))

    def _clock(self) -> Iterator[Finding]:
        about, inspection, found = About("clock"), Inspection(self._storage.current()), False
        ahead = inspection.clock_ahead()
        if abs(ahead) > CLOCK_SECONDS:
            found = True
            yield about.fault(f"the database's clock is {difference(ahead)} this machine's.", CLOCK_ADVICE)
        newest = inspection.newest_job()
        if newest is not None and newest > time.time() + CLOCK_SECONDS:
            found = True
            yield about.fault(
                f"the newest job was accepted {newest - time.time():.0f} s in the future: this machine's clock was set back, or "
                "that of another host is ahead.",
                "Correct the clock, and keep those of all hosts with NTP (timedatectl).",
            )
        if not found:
            yield about.ok("it agrees with the database.")

    # -- the processes -----------------------------------------------------------------------------------------------

    def _gateway(self) -> Iterator[Finding]:
        about, bind = About("gateway"), self._config.bind
        answers = self._answers()
        if answers is None:
            yield about.ok(f"nothing listens at {bind}; the gateway is not running there.")
        elif answers:
            yield about.ok(f"it answers at {bind}.")
        else:
            yield about.fault(
                f"what listens at {bind} does not answer as a gateway does.",
                "Stop the other program, or choose another SDG_BIND; if it is the gateway, look at its log.",
            )

    def _answers(self) -> bool | None:
        """Whether a gateway answers at the configured address; None when nobody listens there.

        :raises PermissionError: this user may not ask.
        """
        with contextlib.closing(_Local(self._config.bind)) as connection:
            try:
                connection.connect()
            except PermissionError:
                raise
            except OSError:
                return None
            try:
                connection.request("GET", "/livez", headers={"Host": "localhost"})
                body = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                return False
            return bool(body == {"status": "ok"})

    def _worker(self) -> Iterator[Finding]:
        about, database = About("worker"), self._storage.current()
        workers = Inspection(database).live_workers()
        hosts = sorted({worker.host for worker in workers})
        if workers:
            yield about.ok(f"alive on {', '.join(hosts)}.")
        elif self._answers():
            advice = "Look at the gateway's log" if self._config.worker == "embedded" else "Start 'sd-gateway worker'"
            yield about.fault("the gateway runs, but no worker is alive: nothing is drawn.", f"{advice}.")
        else:
            yield about.ok("none is alive, for no gateway runs here.")
        others = [host for host in hosts if host != self._config.host_id]
        if others and database.is_sqlite:
            yield about.warning(
                f"a worker of another host ({', '.join(others)}) uses this SQLite database, and here is {self._config.host_id}.",
                "Use PostgreSQL for more than one host; if it is one machine, set the same SDG_HOST_ID for all of its processes.",
            )
        for slot in Inspection(database).abandoned_slots():
            yield about.warning(
                f"the WebUI {slot.key} is still held by a worker of the host {slot.host} that has vanished.",
                "Start a worker that has this WebUI: it takes it over by itself.",
            )

    def _queue(self) -> Iterator[Finding]:
        about, database = About("queue"), self._storage.current()
        if Queue(database).paused():
            yield about.warning("it is paused: requests wait.", "'sd-gateway queue resume' starts jobs again.")
        else:
            yield about.ok("jobs are started.")
        for reason in restarts_needed(Slots(database).doubts()):
            yield about.fault(reason, "Restart that WebUI, or repair the file of the model that it could not load.")

    # -- who is let in -----------------------------------------------------------------------------------------------

    def _access(self) -> Iterator[Finding]:
        about, config = About("access"), self._config
        if config.auth == "none":
            yield self._open(about)
            return
        tokens = Tokens(self._storage.current()).all()
        valid = sum(token.valid for token in tokens)
        make = "Make a token: 'sd-gateway tokens create --name app'"
        if tokens and not valid:
            yield about.warning("every token has expired or was revoked: nobody is let in.", f"{make}.")
        elif tokens:
            yield about.ok(f"{valid} valid token{'s' if valid > 1 else ''}.")
        elif (others := self._way_in()) is not None:
            yield about.fault(f"{others}, and no token was made: nobody who comes that way is served.", f"{make}.")
        else:
            yield about.ok("no token was made: only programs on this machine are served.")

    def _way_in(self) -> str | None:
        """The setting by which others than programs of this machine are to reach the gateway; None where none does it."""
        config = self._config
        if config.public_url:
            return f"SDG_PUBLIC_URL is {without_secrets(config.public_url)}"
        if config.accel:
            return f"SDG_ACCEL is {config.accel}"
        if not is_loopback_port(config.bind):
            return f"SDG_BIND is {config.bind}"
        return None

    def _open(self, about: About) -> Finding:
        if self._config.bind.startswith(_UNIX) or is_loopback_port(self._config.bind):
            return about.ok("SDG_AUTH=none: everybody who reaches this machine's own address may do everything.")
        return about.warning(
            f"SDG_AUTH=none at {self._config.bind}: everybody in that network may read, make and delete all pictures.",
            "Make a token ('sd-gateway tokens create --name app') and remove SDG_AUTH.",
        )


def difference(seconds: float) -> str:
    """How far a clock is from another, in words."""
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


class _Local(http.client.HTTPConnection):
    """A connection to an address as ``SDG_BIND`` has it."""

    def __init__(self, bind: str) -> None:
        self._path = bind.removeprefix(_UNIX) if bind.startswith(_UNIX) else None
        host, _, port = bind.rpartition(":")
        host = host.strip("[]")
        super().__init__(_ANYWHERE.get(host, host), None if self._path else int(port), timeout=_ANSWER_SECONDS)

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
