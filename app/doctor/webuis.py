"""The WebUIs: whether each answers, and whether two names mean one of them.

All are asked at the same time, each by one thread, one question after the other.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from app.config import SIMULATOR, WEBUI_URLS, Config, WebuiAddress
from app.doctor.findings import About, Check, Finding, Skipped
from app.doctor.storage import Storage
from app.doctor.suitability import judge
from app.jobs.inspection import Inspection
from app.runtime.addresses import slot_key
from app.webui.errors import WebuiError, reason, remedy
from app.webui.survey import Survey, surveyed

_MOST_AT_ONCE: Final = 16
_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


class _Place(NamedTuple):
    """The number of a host, "here" for each of this machine's own, its port, and the path there."""

    host: str
    port: int
    path: str


class Webuis:
    """Checks of all configured WebUIs, which are asked when the first check of one begins."""

    def __init__(self, config: Config, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        #: The simulator of its own lives in the gateway's process.
        self._addresses = [address for address in config.webuis if address.url != SIMULATOR]
        #: By their slots' keys, those that have answered.
        self.surveys: dict[str, Survey] = {}
        #: Likewise, where each of them leads.
        self._places: dict[str, frozenset[_Place]] = {}

    def checks(self) -> Iterator[Check]:
        """All of them."""
        yield Check("WebUIs", self._ask, (WEBUI_URLS,))
        yield Check("names of WebUIs", self._names, (WEBUI_URLS, "SDG_HOST_ID"))

    # -- one WebUI ---------------------------------------------------------------------------------------------------

    def _ask(self) -> Iterator[Finding]:
        if not self._addresses:
            yield About("WebUIs").ok("the built-in simulator, which draws pictures that say that they are simulated.")
            return
        with ThreadPoolExecutor(min(len(self._addresses), _MOST_AT_ONCE), thread_name_prefix="doctor") as pool:
            for address, (found, places) in zip(self._addresses, pool.map(_look, self._addresses), strict=True):
                about = About(f"WebUI {address.name}")
                self._places[address.key] = places
                if isinstance(found, Survey):
                    self.surveys[address.key] = found
                    yield from judge(about, address, found)
                else:
                    yield about.fault(f"{reason(found)}.", remedy(found))

    # -- all of them -------------------------------------------------------------------------------------------------

    def _names(self) -> Iterator[Finding]:
        about, found = About("names of WebUIs"), False
        for one, other in itertools.combinations(self._addresses, 2):
            proof = self._are_one(one, other)
            if proof:
                found = True
                advice = f"Take one of them out of {WEBUI_URLS}: a WebUI with two names gets two jobs at once."
                level = about.fault if proof is _SURELY else about.warning
                yield level(f"{one.name} and {other.name} {proof}.", advice)
        for finding in self._elsewhere(about):
            found = True
            yield finding
        if not found:
            yield about.ok("each has one name, as far as can be told.")

    def _are_one(self, one: WebuiAddress, other: WebuiAddress) -> str | None:
        """What is known about two names being one WebUI's; None where nothing says so."""
        starts = [self.surveys[address.key].start for address in (one, other) if address.key in self.surveys]
        if len(starts) == 2 and None not in starts:  # noqa: PLR2004 -- both
            return _SURELY if starts[0] == starts[1] else None
        return _PERHAPS if self._places[one.key] & self._places[other.key] else None

    def _elsewhere(self, about: About) -> Iterator[Finding]:
        """WebUIs that a worker of another host knows by another name than this one."""
        try:
            workers = Inspection(self._storage.current()).live_workers()
        except Skipped:
            return
        theirs = {
            key: worker.host for worker in workers for key in worker.webuis if worker.host != self._config.host_id
        }
        for address in self._addresses:
            place = slot_key(address.url, self._config.host_id)
            if place != address.key and place in theirs:
                yield about.fault(
                    f"{address.name} is called {place} on the host {theirs[place]}.",
                    f"Write the same name, or none, in {WEBUI_URLS} of all hosts: a WebUI with two names gets two jobs at once.",
                )


_SURELY: Final = "are one WebUI: they began at the same moment"
_PERHAPS: Final = "are perhaps one WebUI: they have the same address"


def _look(address: WebuiAddress) -> tuple[Survey | WebuiError, frozenset[_Place]]:
    """Ask a WebUI, and a name server where its address leads."""
    try:
        found: Survey | WebuiError = surveyed(address).survey()
    except WebuiError as error:
        found = error
    return found, _places(address.url)


def _places(url: str) -> frozenset[_Place]:
    """The places that an address may lead to; empty where its host is not known."""
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    hosts = {"here" if _is_own(family, place[0]) else str(place[0]) for family, *_, place in found}
    return frozenset(_Place(host, port, parts.path) for host in hosts)


def _is_own(family: int, number: str | int) -> bool:
    """Whether an address is one of this machine's, which then lets a socket take it."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((number, 0))
    except OSError:
        return False
    return True
