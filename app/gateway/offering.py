"""The names that the configured WebUIs offer, as stored: requests are checked by them, also while a WebUI is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final

from app.jobs.catalogues import Catalogues, CurrentCatalogues
from app.jobs.places import Offers
from app.jobs.slots import Slots
from app.parameters import PARAMETERS, Parameters
from app.webui.catalogue import Catalogue, Requirements
from app.webui.presets import Presets
from app.webui.resolve import choose_default_model, guesses, merge_options

_LOG = logging.getLogger(__name__)

#: WebUIs that were all asked so lately what they offer are not asked again for one request.
RECENT_SECONDS: Final = 5.0
#: How long a request that names something unknown waits for the refresh, and the pause between two queries whether it is done.
REFRESH_PATIENCE_SECONDS: Final = 2.0
_REFRESH_PAUSE_SECONDS: Final = 0.05
#: For an eta the catalogues may be so old.
_JUDGED_SECONDS: Final = 1.0
#: Requests of a process that wait for that at the same time, so that unknown names never hold all of its threads.
_MOST_WAITING: Final = 4


class NoCatalogue(Exception):
    """No configured WebUI was ever seen, so that no name can be checked."""

    slug: ClassVar[str] = "no-catalogue"
    retry_after: float = 10.0

    def __init__(self) -> None:
        super().__init__("No WebUI has answered yet, so what it offers is unknown.")


class Offering:
    """The names that a request may use: its fields, the presets, and the catalogues of the configured WebUIs.

    The catalogues are read again only when one changed.

    :param on_refresh_wanted: tells the workers of this host to ask their WebUIs at once; those of others see it within a second.
    """

    def __init__(
        self,
        slots: Slots,
        kept: Catalogues,
        presets: Presets,
        default_model: str,
        parameters: Parameters = PARAMETERS,
        on_refresh_wanted: Callable[[], None] = lambda: None,
    ) -> None:
        self.presets = presets
        self.parameters = parameters
        self._slots = slots
        self._kept = kept
        self._configured_model = default_model
        self._on_refresh_wanted = on_refresh_wanted
        self._lock = threading.Lock()
        self._versions: tuple[tuple[str, int], ...] = ()
        self._catalogues: dict[str, Catalogue] = {}
        self._offers = _offers({})
        self._read_at = float("-inf")
        #: Held by the request that waits until the WebUIs were asked.
        self._refreshing = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        #: (name of a model, WebUI) whose choice among several files was logged.
        self._guessed: set[tuple[str, str]] = set()

    def catalogues(self) -> dict[str, Catalogue]:
        """The catalogue of each configured WebUI, by its slot's key; empty when none was ever seen."""
        return self._read(self._kept.current())

    def _read(self, current: CurrentCatalogues) -> dict[str, Catalogue]:
        with self._lock:
            if current.versions != self._versions:
                bodies = self._kept.bodies([key for key, _ in current.versions])
                read = ((key, _catalogue(key, bodies[key])) for key, _ in current.versions if key in bodies)
                self._catalogues = {key: catalogue for key, catalogue in read if catalogue is not None}
                self._versions = current.versions
                self._offers = _offers(self._catalogues)
                self._log_guesses(self._settings_models(), self._catalogues)
            self._read_at = time.monotonic()
            return self._catalogues

    def judge(self) -> Offers:
        """Tell which WebUIs offer what a job needs, by catalogues that are at most a second old."""
        if time.monotonic() - self._read_at > _JUDGED_SECONDS:
            self.catalogues()
        return self._offers

    def _settings_models(self) -> list[str]:
        named = (preset.model for preset in self.presets.entries.values() if preset.model is not None)
        return [model for model in (self._configured_model, *named) if model]

    def _log_guesses(self, texts: Sequence[str], catalogues: Mapping[str, Catalogue]) -> None:
        for text, key, title in guesses(texts, catalogues):
            if (text, key) not in self._guessed:
                self._guessed.add((text, key))
                _LOG.warning(
                    "%s has several models called %r; %r is used, write its title to be sure", key, text, title
                )

    def catalogues_and_default_model(self) -> tuple[list[Catalogue], str | None]:
        """The catalogues, and the name of the model of requests that name none."""
        current = self._kept.current()
        catalogues = list(self._read(current).values())
        return catalogues, choose_default_model(self._configured_model, current.default_model, catalogues)

    def require_catalogues(self) -> tuple[list[Catalogue], str | None]:
        """The catalogues, at least one, and the name of the model of requests that name none.

        :raises NoCatalogue: none was ever seen.
        """
        catalogues, default_model = self.catalogues_and_default_model()
        if not catalogues:
            raise NoCatalogue
        return catalogues, default_model

    def update_default_model(self) -> None:
        """Choose the default model anew where the stored one is gone, and store the choice."""
        current = self._kept.current()
        catalogues = self._read(current)
        chosen = choose_default_model("", current.default_model, list(catalogues.values()))
        if current.default_model is not None:
            self._log_guesses([current.default_model], catalogues)
        if chosen is not None and chosen != current.default_model:
            self._kept.set_default_model(chosen)

    def webuis_up(self) -> set[str]:
        """The keys of the configured WebUIs that answered when they were asked last."""
        return self._slots.up()

    def has_default_model(self) -> bool:
        """Whether a model is known for requests that name none, or a setting names one, however missing."""
        return bool(self._configured_model) or self.catalogues_and_default_model()[1] is not None

    def await_refresh(self) -> bool:
        """Have the catalogues of all WebUIs refreshed, and wait until they are, for at most ``REFRESH_PATIENCE_SECONDS``.

        False without waiting where those that are up were asked just now, none is up, no worker is alive, or enough other
        requests wait already.
        """
        before = self._kept.sightings()
        if before.all_since(before.now - RECENT_SECONDS) or not self._slots.worker_alive():
            return False
        if not self._places.acquire(blocking=False):
            return False
        try:
            self._refresh_in_turn(before.now)
        finally:
            self._places.release()
        return True

    def _refresh_in_turn(self, since: float) -> None:
        deadline = time.monotonic() + REFRESH_PATIENCE_SECONDS
        # One request of a process polls for all that wait.
        if self._refreshing.acquire(timeout=REFRESH_PATIENCE_SECONDS):
            try:
                self._await_sightings(since, deadline)
            finally:
                self._refreshing.release()

    def _await_sightings(self, since: float, deadline: float) -> None:
        if self._kept.sightings().all_since(since):
            return
        wanted_at = self._kept.want_refresh()
        self._on_refresh_wanted()
        while not self._kept.sightings().all_since(wanted_at) and time.monotonic() < deadline:
            time.sleep(_REFRESH_PAUSE_SECONDS)

    def options(self) -> dict[str, Any]:
        """The body of ``GET /options``."""
        catalogues, default_model = self.catalogues_and_default_model()
        return merge_options(catalogues, self.presets, default_model)


def _offers(catalogues: Mapping[str, Catalogue]) -> Offers:
    @lru_cache(maxsize=1024)
    def offering(requirements: str) -> frozenset[str] | None:
        if not catalogues:
            return None
        needed = Requirements.from_json(requirements)
        return frozenset(key for key, catalogue in catalogues.items() if catalogue.serves(needed))

    return offering


def _catalogue(key: str, body: str) -> Catalogue | None:
    """A stored catalogue; one that another version of the gateway wrote counts as never seen until it is asked for again."""
    try:
        return Catalogue.from_json(body)
    except ValueError:
        _LOG.warning("the stored catalogue of %s can't be read", key)
        return None
