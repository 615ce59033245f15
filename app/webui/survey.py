"""A look at one WebUI for an operator who wants to know whether it suits the gateway. Nothing in it is changed.

Everything is asked one after the other, and nothing more once a question has failed: a WebUI that is starting can be killed by
requests. ``/internal/sysinfo``, which would tell the version, is not asked: it runs programs for seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from app.config import WebuiAddress
from app.runtime import jsontext
from app.webui.catalogue import Catalogue
from app.webui.client import Webui
from app.webui.errors import NotAnswering
from app.webui.exchange import Reply
from app.webui.overrides import PROMPT_COMMENTS, SAMPLES_FORMAT
from app.webui.payloads import MODEL

#: Seconds that a question may take.
_QUESTION_SECONDS: Final = 5.0
_TASK_ID: Final = "force_task_id"
_GENERATION: Final = "/sdapi/v1/txt2img"
#: The options that generations override, and the sections of the settings that they stand in (``modules/shared_options.py``).
_OVERRIDDEN: Final = frozenset({MODEL, SAMPLES_FORMAT, PROMPT_COMMENTS})
_SECTIONS: Final = frozenset({"sd", "Stable Diffusion", "saving-images", "Saving images/grids"})


@dataclass(frozen=True)
class Survey:
    """What a WebUI tells of itself."""

    catalogue: Catalogue
    #: A text that no other start of any WebUI has; None where it has no such route.
    start: str | None
    #: Whether it takes ``force_task_id`` (1.8 and later); None where that can't be known.
    takes_task_ids: bool | None
    #: Its command-line flags by their names with underscores; None where it does not tell (Forge). They hold passwords.
    flags: Mapping[str, Any] | None
    #: Its clock at one moment, seconds since 1970 to the second, and before and after which times of ours that was; None where
    #: its answers have no date.
    clock: tuple[float, float, float] | None

    @property
    def version(self) -> str:
        """The version as far as what it offers tells."""
        if self.catalogue.forge:
            return "Forge"
        if self.catalogue.schedulers:
            return "version 1.9.1 or later"
        return "version 1.8 or 1.9.0" if self.takes_task_ids else "an unknown version"

    @property
    def freezes_options(self) -> bool:
        """Whether its flags forbid overriding what generations override; it then answers each of them with an error."""
        flags = self.flags or {}
        return (
            bool(flags.get("freeze_settings"))
            or bool(_listed(flags.get("freeze_specific_settings")) & _OVERRIDDEN)
            or bool(_listed(flags.get("freeze_settings_in_sections")) & _SECTIONS)
        )


class SurveyedWebui(Webui):
    """A client that asks what only an operator wants to know."""

    _clock_seen: tuple[float, float, float] | None = None

    def survey(self) -> Survey:
        """Ask everything.

        :raises Unreachable: no connection was made.
        :raises NotAnswering: an answer is of no use.
        """
        return Survey(
            catalogue=self.catalogue(),
            start=self._start(),
            takes_task_ids=self._takes_task_ids(),
            flags=self._flags(),
            clock=self._clock_seen,
        )

    def _start(self) -> str | None:
        """The times that its start took, step by step (``modules/timer.py``); null while it is starting."""
        found = self._ask("GET", "/internal/profile-startup", may_lack=True)
        return jsontext.dumps(found).decode() if isinstance(found, dict) and found.get("records") else None

    def _takes_task_ids(self) -> bool | None:
        document = self._ask("GET", "/openapi.json", may_lack=True)
        if not isinstance(document, dict) or _GENERATION not in _object(document.get("paths")):
            return None
        schemas = _object(_object(document.get("components")).get("schemas"))
        return any(_TASK_ID in _object(_object(schema).get("properties")) for schema in schemas.values())

    def _flags(self) -> Mapping[str, Any] | None:
        try:
            found = self._ask("GET", "/sdapi/v1/cmd-flags", may_lack=True)
        except NotAnswering as error:
            if error.status is None:
                raise
            return None
        return found if isinstance(found, dict) else None

    def _send(self, *args: Any) -> Reply:
        before = time.time()
        reply = super()._send(*args)
        try:
            date = parsedate_to_datetime(reply.date).timestamp()
        except (ValueError, OverflowError):
            return reply
        self._clock_seen = date, before, time.time()
        return reply


def surveyed(address: WebuiAddress) -> SurveyedWebui:
    """A client for the survey of the WebUI at an address."""
    return SurveyedWebui(address, job_timeout=_QUESTION_SECONDS, query_timeout=_QUESTION_SECONDS)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> frozenset[str]:
    """The members of a comma separated flag."""
    return frozenset(part.strip() for part in value.split(",")) if isinstance(value, str) else frozenset()
