"""The names that the operator wrote: those in styles.toml and the default model, against what the WebUIs offer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from app.config import WEBUI_URLS, Config
from app.doctor.findings import About, Check, Finding, Skipped, sentence
from app.doctor.storage import Storage
from app.doctor.webuis import Webuis
from app.jobs.catalogues import Catalogues
from app.webui.catalogue import Catalogue
from app.webui.presets import PresetError, Presets, load_presets

_FILE: Final = "styles.toml"


class Models:
    """Checks of names. What a WebUI offers that does not answer is taken from the database, where it is known."""

    def __init__(self, config: Config, storage: Storage, webuis: Webuis) -> None:
        self._config = config
        self._storage = storage
        self._webuis = webuis
        self._presets = Presets()

    def checks(self) -> Iterator[Check]:
        """All of them."""
        yield Check(_FILE, self._read)
        yield Check("models", self._compare, (WEBUI_URLS, "SDG_DEFAULT_MODEL"))

    def _read(self) -> Iterator[Finding]:
        about = About(_FILE)
        try:
            self._presets = load_presets(self._config.instance / _FILE)
        except PresetError as error:
            yield about.fault(sentence(str(error)), "Correct it; docs/operations.md says where to find an example.")
        else:
            yield about.ok(f"{len(self._presets.names)} styles.")

    def _catalogues(self) -> list[Catalogue]:
        """What every configured WebUI offers.

        :raises Skipped: that is not known of one.
        """
        found = {key: survey.catalogue for key, survey in self._webuis.surveys.items()}
        others = [address for address in self._config.webuis if address.key not in found]
        if others:
            stored = Catalogues(self._storage.current()).bodies([address.key for address in others])
            for address in others:
                if address.key not in stored:
                    raise Skipped(f"{address.name} has not told what it offers.")
                try:
                    found[address.key] = Catalogue.from_json(stored[address.key])
                except ValueError:
                    raise Skipped(f"what {address.name} offers was stored by another version.") from None
        return list(found.values())

    def _compare(self) -> Iterator[Finding]:
        about, catalogues = About("models"), self._catalogues()
        models = {name for catalogue in catalogues for name in catalogue.model_names}
        wrong = [*_missing(self._presets, catalogues), *_missing_default(self._config.default_model, catalogues)]
        if not models:
            yield about.fault(
                "no WebUI has one.", "Put a model into the WebUI's models folder and refresh its list there."
            )
            return
        for where, name in wrong:
            yield about.fault(
                f"{where} names {name}, which no WebUI has.", "Correct the name, or add what it names to a WebUI."
            )
        if not wrong:
            default = f", {self._config.default_model} is the default" if self._config.default_model else ""
            yield about.ok(f"{len(models)} models{default}.")


def _missing(presets: Presets, catalogues: list[Catalogue]) -> Iterator[tuple[str, str]]:
    """Where a style names something that no WebUI has, and what."""
    for style, preset in presets.entries.items():
        if preset.model is not None and not _any_has(catalogues, preset.model):
            yield f"{_FILE} [{style}]", f"the model {preset.model!r}"
        sampler = preset.sampler
        if sampler is not None and not any(catalogue.has("sampler", sampler) for catalogue in catalogues):
            yield f"{_FILE} [{style}]", f"the sampler {sampler!r}"


def _missing_default(model: str, catalogues: list[Catalogue]) -> Iterator[tuple[str, str]]:
    if model and not _any_has(catalogues, model):
        yield "SDG_DEFAULT_MODEL", f"the model {model!r}"


def _any_has(catalogues: list[Catalogue], model: str) -> bool:
    return any(catalogue.model_or_guess(model) is not None for catalogue in catalogues)
