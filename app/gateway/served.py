"""The catalogue of one WebUI, and the waiting jobs that it can serve."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from app.gateway.memory import WebuiMemory
from app.gateway.offering import Offering
from app.jobs.catalogues import Catalogues
from app.jobs.model import Claim
from app.jobs.table import JobTable, Serving
from app.webui import payloads
from app.webui.catalogue import Catalogue, Requirements
from app.webui.client import Webui
from app.webui.errors import ModelVanished, WebuiError
from app.webui.models import Model

_LOG = logging.getLogger(__name__)


class Served:
    """The catalogue of one WebUI, and the requirements judged by it. Safe under threads."""

    def __init__(
        self, webui: Webui, table: JobTable, kept: Catalogues, offering: Offering, memory: WebuiMemory
    ) -> None:
        self._webui = webui
        self._table = table
        self._kept = kept
        self._offering = offering
        self._memory = memory
        #: Guards what follows.
        self._lock = threading.Lock()
        self._catalogue = Catalogue()
        self._requirements: dict[int, Requirements] = {}
        self._unservable: frozenset[int] = frozenset()
        #: Names that stand for several models, of which one was taken for a job of version 0.1.0.
        self._guessed: set[str] = set()
        #: Set when an answer shows that the catalogue is not right any more.
        self.outdated = threading.Event()

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue as of the last refresh."""
        return self._catalogue

    def refresh(self) -> Catalogue:
        """Ask the WebUI what it offers and keep that.

        :raises WebuiError: it does not answer.
        """
        self.outdated.clear()
        asked_at = self._kept.now()
        catalogue = self._webui.catalogue()
        self._memory.look_for_restart()
        self._memory.learn_overridden()
        own = self._memory.overrides.own_value(catalogue.prompt_comments)
        self._keep(replace(catalogue, prompt_comments=own), asked_at)
        return catalogue

    def check_listed(self, model: Model) -> None:
        """Have the WebUI take vanished files off its list, and learn which model is loaded. A failure of this costs nothing.

        :raises ModelVanished: the model is not listed any more, and asking for it would make pictures with another.
        """
        with suppress(WebuiError):
            self._webui.refresh_checkpoints()
        asked_at = self._kept.now()
        try:
            seen = self._webui.checkpoints()
        except WebuiError:
            return
        if all(model.bare_title != other.bare_title for other in seen.models):
            self._keep(replace(self._catalogue, models=seen.models, loaded_model=seen.loaded_model), asked_at)
            raise ModelVanished
        self._memory.learn_loaded(seen)

    def _keep(self, catalogue: Catalogue, asked_at: float) -> None:
        self._kept.put(self._webui.key, catalogue.to_json(), asked_at)
        self._offering.update_default_model()
        with self._lock:
            self._catalogue = catalogue
            self._unservable = self._judge(self._requirements)

    # -- the requirements of jobs -----------------------------------------------------------------------------------------

    def serving(self, *, fresh: bool) -> Serving:
        """The requirements that this WebUI can serve; ``fresh`` reads what is new in the database first."""
        with self._lock:
            if fresh:
                self._memory.learn_stored()
                self._learn_requirements()
            doubt = self._memory.doubt
            return Serving(
                max(self._requirements, default=0), self._unservable | self._doubted(doubt.model), doubt.stored
            )

    def knows(self, claim: Claim) -> bool:
        """Whether the claimed job's requirements are those known by their number; if not, all are read again."""
        with self._lock:
            known = self._requirements.get(claim.job.requirements_id) == Requirements.from_json(claim.requirements)
            if not known:
                self._forget_requirements()
            return known

    def _learn_requirements(self) -> None:
        """Read the requirements that are new; all of them when the newest known one has another number or is gone."""
        newest = max(self._requirements, default=0)
        found = self._read_requirements(newest - 1)
        if found.get(newest) != self._requirements.get(newest):
            self._forget_requirements()
            found = self._read_requirements(0)
        new = {number: requirements for number, requirements in found.items() if number not in self._requirements}
        self._requirements |= new
        self._unservable |= self._judge(new)

    def _read_requirements(self, after: int) -> dict[int, Requirements]:
        return {number: Requirements.from_json(body) for number, body in self._table.queries.requirements_after(after)}

    def _forget_requirements(self) -> None:
        self._requirements, self._unservable = {}, frozenset()

    def _judge(self, requirement_sets: Mapping[int, Requirements]) -> frozenset[int]:
        return frozenset(
            number for number, requirements in requirement_sets.items() if not self._catalogue.serves(requirements)
        )

    def _doubted(self, checkpoint: str | None) -> frozenset[int]:
        """The requirements for a model that may be broken in the WebUI's memory."""
        if checkpoint is None:
            return frozenset()
        return frozenset(
            number
            for number, requirements in self._requirements.items()
            if (model := self._catalogue.model_of(requirements)) is not None and model.checkpoint == checkpoint
        )

    def model_of(self, claim: Claim) -> Model:
        """The model of a job here. One that version 0.1.0 accepted for a name of several files has the exact model_name.

        :raises NoLongerAvailable: the WebUI has it no more.
        """
        requirements, catalogue = Requirements.from_json(claim.requirements), self._catalogue
        model = payloads.model_of(requirements, catalogue)
        if catalogue.model(requirements.model) is None and requirements.model not in self._guessed:
            self._guessed.add(requirements.model)
            _LOG.warning(
                "WebUI %s has several models called %r; jobs that version 0.1.0 accepted use %r",
                self._webui.name,
                requirements.model,
                model.title,
            )
        return model
