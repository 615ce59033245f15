"""What the configured WebUIs offer, as stored in the database: to check names by, also while a WebUI is down."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from app.jobs.slots import Slots
from app.webui.catalogue import Catalogue
from app.webui.names import choose_default_model, merge_options
from app.webui.presets import Presets


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
        versions = self._slots.catalogue_versions()
        with self._lock:
            if versions != self._versions:
                bodies = self._slots.catalogues([key for key, _ in versions])
                self._catalogues = {key: Catalogue.from_json(bodies[key]) for key, _ in versions if key in bodies}
                self._versions = versions
            return self._catalogues

    def known(self) -> list[Catalogue]:
        """The catalogues, at least one.

        :raises NoCatalogue: none was ever seen.
        """
        catalogues = list(self.catalogues().values())
        if not catalogues:
            raise NoCatalogue
        return catalogues

    def default_model(self) -> str | None:
        """The model_name of requests that name none."""
        return choose_default_model(
            self._configured_model, self._slots.default_model(), list(self.catalogues().values())
        )

    def keep_default_model(self) -> None:
        """Choose the default model anew where the stored one is gone, and store the choice."""
        stored = self._slots.default_model()
        chosen = choose_default_model("", stored, list(self.catalogues().values()))
        if chosen is not None and chosen != stored:
            self._slots.set_default_model(chosen)

    def options(self) -> dict[str, Any]:
        """The body of ``GET /options``."""
        return merge_options(list(self.catalogues().values()), self.presets, self.default_model())
