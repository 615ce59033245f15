"""``sd-gateway doctor``: look for everything that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from app.config import CannotStart, Config, read
from app.doctor.examination import examine
from app.doctor.findings import About, Check, Finding, Level, summary
from app.serving.checks import room_for_connections


@click.command()
def doctor() -> None:
    """Check settings, database, data folder, clock, disk and WebUIs, and say what to do; exits 1 when something is wrong.

    It makes and changes nothing, and may run beside a gateway. Warnings leave the exit status 0.
    """
    reading = read()
    findings: list[Finding] = []
    limits = ("SDG_THREADS", "SDG_MAX_WAITERS", "SDG_MAX_STREAMS")
    for finding in examine(reading, [Check("open files", lambda: _open_files(reading.config), limits)]):
        findings.append(finding)
        click.echo(str(finding))
    click.echo(summary(findings))
    if any(finding.level is Level.FAULT for finding in findings):
        sys.exit(1)


def _open_files(config: Config) -> Iterator[Finding]:
    about = About("open files")
    try:
        room = room_for_connections(config)
    except CannotStart as error:
        yield about.fault(error.what, error.advice)
    else:
        yield about.ok(f"enough for {room} connections of each web process.")
