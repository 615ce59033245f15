"""Knowledge of one WebUI's memory: the checkpoint that it has loaded, whether that is whole, and the options we overrode.

All of it ends with the WebUI's process. The doubt and the overridden options are kept in the slot's row as well, so that the next
process of the gateway knows them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from app.jobs.errors import DatabaseUnavailable
from app.jobs.slots import Slots
from app.webui.catalogue import Catalogue
from app.webui.client import NO_JOB_YET, Webui
from app.webui.doubts import ModelDoubt
from app.webui.errors import NotUp, WebuiError, nobody_listens
from app.webui.models import Model
from app.webui.overrides import OptionOverrides

_LOG = logging.getLogger(__name__)

#: After a pause of so many seconds somebody may have loaded another model by hand.
_KNOWN_SECONDS: Final = 2.0
#: Seconds between two attempts at a WebUI with a broken model and no other one that can be loaded: a file may have been repaired.
_TRY_AGAIN_SECONDS: Final = 60.0
#: A WebUI at which others were seen to work counts as shared for so long.
_SHARED_SECONDS: Final = 600.0


class WebuiMemory:
    """The memory of the WebUI with the slot ``webui.key``. Safe under threads: each fact is one value, or guards itself."""

    def __init__(self, webui: Webui, slots: Slots) -> None:
        self._webui = webui
        self._slots = slots
        traits = slots.traits(webui.key)
        self.doubt: Final = ModelDoubt(traits.doubt, lambda text: slots.keep_doubt(webui.key, text))
        self.overrides: Final = OptionOverrides(traits.overridden, self._keep_overridden)
        #: The checkpoint that is loaded, as far as is known.
        self.loaded: str | None = None
        #: Counts the answers that showed what is loaded.
        self.shown: int = 0
        self._answered_at = 0.0
        self._gave_up_at = 0.0
        self._shared_until = 0.0

    def learn_stored(self) -> None:
        """Take over what another process has stored."""
        traits = self._slots.traits(self._webui.key)
        self.doubt.learn(traits.doubt)
        self.overrides.learn(traits.overridden)

    def learn_overridden(self) -> None:
        """Take over which options another process overrode and has not put back."""
        self.overrides.learn(self._slots.traits(self._webui.key).overridden)

    # -- the loaded checkpoint ---------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A generation was answered just now."""
        self._answered_at = time.monotonic()

    def made_with(self, model: Model) -> None:
        """A generation with this model was answered with a 200."""
        self.loaded = model.checkpoint
        self.shown += 1

    def learn_loaded(self, catalogue: Catalogue) -> None:
        """The WebUI's lists say which model is loaded: a person may have loaded another one by hand."""
        model = catalogue.model(catalogue.loaded_model) if catalogue.loaded_model else None
        self.loaded = model.checkpoint if model is not None else self.loaded

    def ask_loaded(self, catalogue: Catalogue) -> None:
        """Ask which model is loaded, where somebody else may have loaded another one since our last picture."""
        alone = time.monotonic() < self._answered_at + _KNOWN_SECONDS and not self.is_shared
        if alone or len(catalogue.models) == 1:
            return
        with suppress(WebuiError):
            model = catalogue.model(self._webui.loaded_checkpoint())
            self.loaded = self.loaded if model is None else model.checkpoint

    @property
    def is_shared(self) -> bool:
        """Whether others were lately seen to work at this WebUI."""
        return time.monotonic() < self._shared_until

    def seen_shared(self) -> None:
        """Others work at this WebUI too."""
        self._shared_until = time.monotonic() + _SHARED_SECONDS

    # -- the doubt ---------------------------------------------------------------------------------------------------

    def look_for_restart(self) -> None:
        """End a doubt whose WebUI was restarted unseen, as behind a proxy; let a hopeless one be tried again now and then."""
        if self.doubt.model is None:
            return
        with suppress(WebuiError):
            if self._webui.server_state().job_timestamp == NO_JOB_YET:
                self._forget()
        if self.doubt.hopeless and time.monotonic() >= self._gave_up_at + _TRY_AGAIN_SECONDS:
            self.doubt.try_again()

    def needs_repair(self) -> bool:
        """Whether jobs for the model that may be broken must wait until another one was loaded."""
        return self.doubt.model is not None and not self.doubt.hopeless

    def model_to_load(self, models: Sequence[Model]) -> Model | None:
        """The model by which a repair is to be tried; None if there is none left, which is logged and ends the repairs."""
        candidates = self.doubt.candidates(models)
        if candidates:
            return candidates[0]
        self.doubt.give_up()
        self._gave_up_at = time.monotonic()
        _LOG.warning(
            "WebUI %s must be restarted, or a model file repaired: its loaded model is broken, and no other one can be loaded",
            self._webui.name,
        )
        return None

    # -- its end -----------------------------------------------------------------------------------------------------

    def note_absence(self, error: WebuiError) -> None:
        """Forget the WebUI's memory if the error shows that it was restarted: it refused the connection, or had no API yet."""
        if nobody_listens(error) or (isinstance(error, NotUp) and error.restarted):
            self._forget()

    def _forget(self) -> None:
        self.loaded = None
        self.overrides.forget()
        # A doubt that can't be taken back now is only too careful, and goes with the next absence or picture.
        with suppress(DatabaseUnavailable):
            self.doubt.forget()

    def _keep_overridden(self, text: str | None) -> None:
        try:
            self._slots.keep_overridden(self._webui.key, text)
        except DatabaseUnavailable:
            _LOG.warning("which options of WebUI %s are to be put back could not be stored", self._webui.name)
