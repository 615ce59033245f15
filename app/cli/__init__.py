"""The ``sd-gateway`` command."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from app import startup
from app.cli.doctor import doctor
from app.cli.opening import existing_config, loaded, make_instance, services_of, with_services
from app.cli.speaking import Refusal, note, system_user
from app.cli.tokens import tokens
from app.config import effective, load, read
from app.gateway.maintenance import Maintenance, Report
from app.jobs.errors import JobsError
from app.parameters import TYPES
from app.records.errors import RecordsError
from app.runtime import audit, logs
from app.runtime.malloc import give_memory_back
from app.services import Services
from app.serving.checks import failure_to_bind
from app.serving.program import Gunicorn
from app.simulator import FLAVOURS, SimulatorServer, SimulatorSettings, parse_fault


@click.group()
@click.version_option(package_name="sd-gateway", message="%(package)s %(version)s")
def main() -> None:
    """A service in front of AUTOMATIC1111 Stable Diffusion WebUI servers."""
    # What was imported stays: don't look for garbage among it, neither now nor at the end.
    gc.freeze()
    # Also where they are faulty, which the command itself says.
    settings = read().config
    logs.configure(settings.log_format)
    audit.keep(settings.instance, settings.log_format)


def _stop_signal() -> Callable[[], None]:
    """Catch SIGTERM and Ctrl-C from now on; what is returned waits for the first of them. A second Ctrl-C then ends the process
    at once.

    The interpreter itself puts the signal's number into a pipe. An event that a handler sets can be missed: a handler only runs
    between two bytecodes, so not when the signal comes just before the main thread begins to wait.
    """
    stops = (signal.SIGTERM, signal.SIGINT)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in stops:
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while os.read(reader, 1)[0] not in stops:
            pass
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return wait


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("gunicorn_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(context: click.Context, gunicorn_options: tuple[str, ...]) -> None:
    """Serve the HTTP API with gunicorn; make the instance folder if it is missing.

    Further options are gunicorn's (-h lists them) and win over the settings.
    """
    settings = loaded(load)
    program = Gunicorn(gunicorn_options, context.command_path)
    make_instance(settings)
    program.run()


@main.command()
def config() -> None:
    """Print the effective settings, without user names, passwords and keys."""
    for name, text in loaded(effective).items():
        click.echo(f"{name}={text}")


main.add_command(doctor)


@main.command()
def worker() -> None:
    """Run a worker of its own, for SDG_WORKER=external."""
    services = services_of(startup.open_services)
    if services.config.worker != "external":
        raise Refusal("SDG_WORKER is not 'external': the web processes run the worker themselves.")
    wait_for_stop = _stop_signal()
    give_memory_back()
    services.start(worker=True, elected=False)
    note(f"working for {len(services.config.webuis)} WebUIs")
    wait_for_stop()
    services.drain()


def _fault(_context: Any, _parameter: Any, texts: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    try:
        return tuple(parse_fault(text) for text in texts)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


#: The options of ``simulate`` that are settings of the simulator under the same name.
_SIMULATOR_OPTIONS = (
    click.option("--seconds-per-image", type=click.FloatRange(0), default=0.2, show_default=True),
    click.option("--flavour", type=click.Choice(FLAVOURS), default="a1111-1.10", show_default=True),
    click.option(
        "--model",
        "models",
        multiple=True,
        default=SimulatorSettings.models,
        help="Name of a model, as folder/name in a sub folder, with or without extension; may be given again.",
    ),
    click.option(
        "--fault",
        "faults",
        multiple=True,
        callback=_fault,
        metavar="KIND:N",
        help="Fault of the next N requests; may be given again.",
    ),
    click.option(
        "--precomputed", is_flag=True, help="Serve the same picture for every seed, which takes no time to draw."
    ),
    click.option("--no-hashing", "hashing", flag_value=False, default=True, type=bool, help="Never hash a model."),
    click.option(
        "--lacks-option", "lacks_options", multiple=True, metavar="NAME", help="An option that it does not have."
    ),
    click.option("--frozen-options", is_flag=True, help="Leave options that are registered late out of GET /options."),
    click.option(
        "--seconds-per-first-load",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        help="Wait of the first generation for the model.",
    ),
    click.option("--fresh", is_flag=True, help="No model is chosen until the first one is loaded (A1111)."),
)


def _simulator_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_SIMULATOR_OPTIONS):
        command = option(command)
    return command


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="Port to listen on; 0 takes a free one.")
@_simulator_options
def simulate(host: str, port: int, **values: Any) -> None:
    """Run a simulated WebUI that draws instead of diffusing."""
    try:
        settings = SimulatorSettings(**values)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    failure = failure_to_bind(host, port)
    if failure is not None:
        raise Refusal(f"can't listen at {host}:{port}: {failure.strerror}. Choose another --port.")
    wait_for_stop = _stop_signal()
    with SimulatorServer(settings, host=host, port=port) as server:
        note(f"simulated WebUI ({settings.flavour}) at {server.url}")
        wait_for_stop()


@main.group()
def records() -> None:
    """Look after the records on disk."""


_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")


def _report(run: Callable[[Maintenance], Report], words: str) -> Report:
    """Run over the data folder, say what was found, and return it."""
    services = services_of(startup.open_existing)
    services.database.be_patient()
    note(startup.places(services.config))
    try:
        report = run(services.maintenance)
    except (JobsError, RecordsError) as error:
        raise Refusal(str(error)) from error
    finally:
        services.database.close()
    for problem in report.problems:
        note(problem)
    click.echo(words.format(count=report.count, problems=len(report.problems)))
    return report


@records.command()
@_dry_run
def sweep(dry_run: bool) -> None:
    """Remove the files that belong to no record; exits 1 when it finds something that no row in the database accounts for."""
    done = "would be removed" if dry_run else "removed"
    report = _report(lambda maintenance: maintenance.sweep(dry_run=dry_run), f"{{count}} stray files {done}")
    if report.count and not dry_run:
        audit.audit("files-swept", count=report.count, by=system_user())
    if report.unindexed:
        advice = "They were left alone; 'sd-gateway records reindex' adds them."
        note(f"{report.unindexed} records have no row in the database. {advice}")
    if report.unindexed or report.problems:
        sys.exit(1)


@records.command()
def verify() -> None:
    """Open every file of every record; exits 1 when one is missing or damaged."""
    if _report(Maintenance.verify, "{count} records looked at, {problems} problems").problems:
        sys.exit(1)


@records.command()
@_dry_run
def reindex(dry_run: bool) -> None:
    """Add to the database the records that only the folder knows; exits 1 when a document can't be read."""
    done = "would be added" if dry_run else "added"
    words = f"{{count}} records {done}, {{problems}} not readable"
    if _report(lambda maintenance: maintenance.reindex(dry_run=dry_run), words).problems:
        sys.exit(1)


@records.command()
@_dry_run
def adopt(dry_run: bool) -> None:
    """Make the database belong to the data folder after either was restored or replaced; a missing database is made."""
    config = existing_config()
    value = loaded(lambda: startup.adopt(config, dry_run=dry_run))
    note(startup.places(config))
    click.echo(f"database and data folder {'would' if dry_run else 'now'} carry the id {value}")
    if not dry_run:
        note("'sd-gateway records reindex' adds the records that only the folder knows.")


@records.command()
def upkeep() -> None:
    """Remove what deleted records and expired keys have left; the worker does the same in small steps."""
    services = services_of(startup.open_existing)
    note(startup.places(services.config))
    try:
        done = services.upkeep.run()
    except (JobsError, RecordsError) as error:
        raise Refusal(str(error)) from error
    finally:
        services.database.close()
    for what, count in done.items():
        click.echo(f"{what}: {count}")
    removed = ", ".join(f"{count} {what}" for what, count in done.items() if count)
    if removed:
        audit.audit("upkeep-done", removed=removed, by=system_user())


@main.group()
def queue() -> None:
    """Look after the queue."""


@queue.command()
def pause() -> None:
    """Start no more jobs: what runs is finished, requests are accepted and wait, also over restarts."""
    paused = with_services(lambda services: services.tables.queue.pause())
    if paused:
        audit.audit("queue-paused", by=system_user())
    click.echo("the queue is paused" if paused else "the queue was paused already")


@queue.command()
def resume() -> None:
    """Start jobs again."""
    resumed = with_services(Services.resume_queue)
    if resumed:
        audit.audit("queue-resumed", by=system_user())
    click.echo("jobs are started again" if resumed else "the queue was not paused")


@queue.command("list")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Waiting jobs to show.")
def list_queue(limit: int) -> None:
    """Print what runs and what waits, in the order in which it will start."""
    for line in with_services(lambda services: services.overview.lines(limit)):
        click.echo(line)


@queue.command()
@click.argument("user")
@click.argument("type_", metavar="[TYPE]", required=False, type=click.Choice(TYPES))
@click.argument("name", required=False)
@click.option("--waiting", is_flag=True, help="Instead of one job, all jobs of the user that wait.")
def cancel(user: str, type_: str | None, name: str | None, *, waiting: bool) -> None:
    """Cancel one job of a USER, by its TYPE and NAME as `queue list` prints them: one that runs is stopped."""
    if waiting == (name is not None):
        raise click.UsageError("Name one job by TYPE and NAME, or say --waiting.")
    if type_ is None or name is None:
        count = with_services(lambda services: services.archive.cancel_queued(user))
        if count:
            audit.audit("jobs-cancelled", user=user, count=count, by=system_user())
        click.echo(f"{count} jobs cancelled")
    else:
        job = with_services(lambda services: services.archive.cancel(user, type_, name).view)
        audit.audit("job-cancelled", user=user, job=name, type=type_, by=system_user())
        asked = "is asked to end" if job["status"] == "running" else f"is {job['status']}"
        click.echo(f"the job {asked}")


main.add_command(tokens)
