"""Whether a WebUI that answers suits the gateway: its version, its flags and its clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from app.config import WebuiAddress
from app.doctor.findings import About, Finding, Level
from app.doctor.service import CLOCK_ADVICE, CLOCK_SECONDS, difference
from app.jobs.inspection import outside
from app.runtime.addresses import is_loopback
from app.webui.survey import Survey


class _Flag(NamedTuple):
    """A command-line flag that an operator should know of: how it is recognised, what it does, and what to do."""

    name: str
    level: Level
    is_set: Callable[[Any], bool]
    effect: str
    advice: str


#: ``modules/cmd_args.py`` of the WebUI.
_FLAGS: Final = (
    _Flag(
        "share",
        Level.FAULT,
        bool,
        "it can be used by everybody on the internet",
        "Start it without --share.",
    ),
    _Flag("ngrok", Level.FAULT, bool, "it can be used by everybody on the internet", "Start it without --ngrok."),
    _Flag(
        "ui_debug_mode",
        Level.FAULT,
        bool,
        "it loads no model and draws nothing",
        "Start it without --ui-debug-mode.",
    ),
    _Flag(
        "disable_nan_check",
        Level.WARNING,
        bool,
        "broken pictures come back as black ones instead of as errors, and are stored",
        "Start it without --disable-nan-check.",
    ),
    _Flag(
        "api_server_stop",
        Level.WARNING,
        bool,
        "whoever reaches its API can stop it",
        "Start it without --api-server-stop.",
    ),
    _Flag(
        "allow_code",
        Level.WARNING,
        bool,
        "whoever uses its page can run programs there",
        "Start it without --allow-code.",
    ),
    _Flag(
        "enable_insecure_extension_access",
        Level.WARNING,
        bool,
        "whoever uses its page can install programs there",
        "Start it without --enable-insecure-extension-access.",
    ),
    _Flag(
        "cors_allow_origins",
        Level.WARNING,
        lambda value: "*" in str(value or ""),
        "pages of every site can use it from a browser that reaches it",
        "Start it without --cors-allow-origins=*.",
    ),
)


def judge(about: About, address: WebuiAddress, survey: Survey) -> Iterator[Finding]:
    """What there is to say of a WebUI that answers."""
    found = [*_missing(about, survey), *_flags(about, address, survey), *_clock(about, survey)]
    if not found:
        yield about.ok(f"{survey.version}, {len(survey.catalogue.models)} models.")
    yield from found


def _missing(about: About, survey: Survey) -> Iterator[Finding]:
    if survey.takes_task_ids is False:
        yield about.fault(
            "it is too old: it takes no task ids (force_task_id), by which the gateway tells its own pictures from others.",
            "Update it to version 1.8 or later.",
        )
    if not survey.catalogue.task_ids:
        yield about.warning(
            "it has no /internal/progress, so a job of somebody else there can't be told from one of the gateway.",
            "Start it with its page (without --nowebui), and let no proxy keep /internal away from the gateway.",
        )


def _flags(about: About, address: WebuiAddress, survey: Survey) -> Iterator[Finding]:
    if survey.flags is None:
        return
    if survey.freezes_options:
        yield about.fault(
            "its options are frozen, so that it refuses every generation.",
            "Start it without --freeze-settings, --freeze-settings-in-sections and --freeze-specific-settings.",
        )
    for flag in _FLAGS:
        if flag.is_set(survey.flags.get(flag.name)):
            name = flag.name.replace("_", "-")
            level = about.fault if flag.level is Level.FAULT else about.warning
            yield level(f"--{name}: {flag.effect}.", flag.advice)
    if not survey.flags.get("api_auth") and not is_loopback(urlsplit(address.url).hostname or ""):
        yield about.warning(
            "everybody who reaches its address can use its API.",
            "Start it with --api-auth user:password and write both into its address; /internal stays open even then, so let "
            "a firewall admit the gateway alone.",
        )


def _clock(about: About, survey: Survey) -> Iterator[Finding]:
    if survey.clock is None:
        return
    theirs, before, after = survey.clock
    # Its second may have been nearly over.
    ahead = outside(theirs, before - 1.0, after)
    if abs(ahead) > CLOCK_SECONDS:
        yield about.fault(f"its clock is {difference(ahead)} this machine's.", CLOCK_ADVICE)
