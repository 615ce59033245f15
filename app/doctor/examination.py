"""All checks of ``sd-gateway doctor`` in their order: each is made, whatever the others find. Nothing is made or changed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from app.config import Reading
from app.doctor.findings import About, Check, Finding, Skipped, sentence
from app.doctor.machine import Machine
from app.doctor.models import Models
from app.doctor.service import Service
from app.doctor.storage import Storage
from app.doctor.webuis import Webuis
from app.startup import ERRORS, diagnose


def examine(reading: Reading, more: Sequence[Check] = ()) -> Iterator[Finding]:
    """Make all checks of the gateway that these settings describe.

    :param more: checks that the caller knows how to make; they stand behind those of the machine.
    """
    yield from _settings(reading)
    config = reading.config
    with contextlib.closing(Storage(config)) as storage:
        webuis = Webuis(config, storage)
        parts = (Machine(config, storage), storage, Service(config, storage), webuis, Models(config, storage, webuis))
        first, *others = (part.checks() for part in parts)
        for check in itertools.chain(first, more, *others):
            yield from _made(check, reading)


def _settings(reading: Reading) -> Iterator[Finding]:
    about = About("settings")
    if not reading.faults:
        yield about.ok("all of them are known and can be read.")
    for fault in reading.faults:
        yield about.fault(
            sentence(fault),
            "Correct it in the environment or in settings.toml; 'sd-gateway config' prints what is in effect.",
        )


def _made(check: Check, reading: Reading) -> Iterator[Finding]:
    """The findings of a check, also of one that fails itself."""
    about = About(check.subject)
    unknown = sorted(reading.doubtful.intersection(check.settings))
    if unknown:
        yield about.skipped(f"{', '.join(unknown)} can't be read.")
        return
    try:
        yield from check.find()
    except Skipped as reason:
        yield about.skipped(str(reason))
    except ERRORS as error:
        yield about.fault(*diagnose(error, reading.config))
    except OSError as error:
        yield about.fault(f"it can't be checked: {error.strerror or error}.", "Run the command as the gateway's user.")
    except Exception as error:  # noqa: BLE001 -- whatever it is, it must not keep the other checks from being made
        yield about.fault(f"the check itself failed ({type(error).__name__}).", "Report this as a bug of sd-gateway.")
