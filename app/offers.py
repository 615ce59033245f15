"""What the configured WebUIs offer, as stored in the database: to check names by, also while a WebUI is down."""

from __future__ import annotations

import logging
import threading
from typing import Any, ClassVar

from app.jobs.slots import Offer, Slots
from app.webui.catalogue import Catalogue
from app.webui.names import choose_default_model, merge_options
from app.webui.presets import Presets

_LOG = logging.getLogger(__name__)


class NoCatalogue(Exception):
    """No configured WebUI was ever seen, so that no name can be checked."""

    slug: ClassVar[str] = "no-catalogue"
    retry_after: float = 10.0

    def __init__(self) -> None:
        super().__init__("No WebUI has answered yet, so what it offers is unknown.")


class Offers:
    """The catalogues of the configured WebUIs, read again only when one changed."""

    def __init__(self, slots: Slots, presets: Presets, default_model: str) -> None:
        self.presets = presets
        self._slots = slots
        self._configured_model = default_model
        self._lock = threading.Lock()
        self._versions: tuple[tuple[str, int], ...] = ()
        self._catalogues: dict[str, Catalogue] = {}

    def catalogues(self) -> dict[str, Catalogue]:
        """The catalogue of each configured WebUI, by its slot's key; empty when none was ever seen."""
        return self._read(self._slots.offer())

    def _read(self, offer: Offer) -> dict[str, Catalogue]:
        with self._lock:
            if offer.versions != self._versions:
                bodies = self._slots.catalogues([key for key, _ in offer.versions])
                read = ((key, _catalogue(key, bodies[key])) for key, _ in offer.versions if key in bodies)
                self._catalogues = {key: catalogue for key, catalogue in read if catalogue is not None}
                self._versions = offer.versions
            return self._catalogues

    def current(self) -> tuple[list[Catalogue], str | None]:
        """The catalogues, and the model_name of requests that name none."""
        offer = self._slots.offer()
        catalogues = list(self._read(offer).values())
        return catalogues, choose_default_model(self._configured_model, offer.default_model, catalogues)

    def known(self) -> tuple[list[Catalogue], str | None]:
        """The same, with at least one catalogue.

        :raises NoCatalogue: none was ever seen.
        """
        catalogues, default_model = self.current()
        if not catalogues:
            raise NoCatalogue
        return catalogues, default_model

    def keep_default_model(self) -> None:
        """Choose the default model anew where the stored one is gone, and store the choice."""
        offer = self._slots.offer()
        chosen = choose_default_model("", offer.default_model, list(self._read(offer).values()))
        if chosen is not None and chosen != offer.default_model:
            self._slots.set_default_model(chosen)

    def options(self) -> dict[str, Any]:
        """The body of ``GET /options``."""
        catalogues, default_model = self.current()
        return merge_options(catalogues, self.presets, default_model)


def _catalogue(key: str, body: str) -> Catalogue | None:
    """A stored catalogue; one that another version of the gateway wrote counts as never seen until it is asked for again."""
    try:
        return Catalogue.from_json(body)
    except ValueError:
        _LOG.warning("the stored catalogue of %s can't be read", key)
        return None
