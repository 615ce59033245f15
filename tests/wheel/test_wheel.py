"""The wheel does outside the checkout what the checkout does, alone in a virtual environment, and writes nothing beside itself."""

from __future__ import annotations

import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.postgresql import PostgresServer
from tests.system.harness import CHECKOUT, children, free_port, picture, until
from tests.wheel.installed import Place, Served

POSTGRESQL = "postgresql://gateway@127.0.0.1/nothing"
PlaceWith = Callable[[str], Place]


@pytest.fixture
def place(place_with: PlaceWith) -> Place:
    """A folder with the package as it is installed without extras."""
    return place_with("")


def made(gateway: Served, **changes: object) -> dict[str, object]:
    """The finished job of a POST."""
    answer = gateway.http.request("POST", "/txt2img", json=picture(**changes))
    assert answer.status_code == requests.codes.ok, answer.text
    job: dict[str, object] = answer.json()
    return job


def names(gateway: Served) -> list[str]:
    """The records of the test's user, newest first."""
    return [record["name"] for record in gateway.http.get("/t2ihistory/user").json()["records"]]


def survive_a_kill(gateway: Served) -> None:
    """Make a picture, kill every process while two more are asked for, and find all three after the next start."""
    first = made(gateway)["name"]
    for seed in (1, 2):
        headers = {"Prefer": "respond-async"}
        answer = gateway.http.request("POST", "/txt2img", json=picture(seed=str(seed)), headers=headers)
        assert answer.status_code == requests.codes.accepted, answer.text
    gateway.kill()
    gateway.launch()
    gateway.await_ready()
    until(lambda: len(names(gateway)) == 3, "the jobs of before the kill are finished", 60)
    assert names(gateway)[-1] == first
    for record in gateway.http.get("/t2ihistory/user").json()["records"]:
        assert gateway.http.get(record["images"][0]["url"]).content.startswith(b"\x89PNG")


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = CHECKOUT / "app"
    files = {path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {str(path.relative_to(CHECKOUT)) for path in files}
    assert {"app/py.typed", "app/migrations/script.py.mako", "app/serving/gunicorn_conf.py"} <= held


def test_version_and_settings_are_told_and_nothing_is_made(place: Place, wheel: Path) -> None:
    version = place.run("--version")
    assert (version.returncode, version.stdout) == (0, f"sd-gateway {wheel.name.split('-')[1]}\n")
    settings = place.run("config", SDG_WEBUI_URLS="http://me:secret@gpu:7860")
    lines = dict(line.split("=", 1) for line in settings.stdout.splitlines())
    assert lines["SDG_INSTANCE"] == str(place.instance)
    assert lines["SDG_DATA_DIR"] == str(place.instance / "data")
    assert lines["SDG_WEBUI_URLS"] == "http://…@gpu:7860"
    assert list(place.folder.iterdir()) == []


@pytest.mark.parametrize("command", [("worker",), ("records", "verify"), ("records", "adopt")])
def test_a_command_other_than_serve_refuses_a_missing_instance_folder(place: Place, command: tuple[str, ...]) -> None:
    ended = place.run(*command, SDG_WORKER="external")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Error: {place.instance} does not exist. Set SDG_INSTANCE to the gateway's folder, "
        "or make it with 'sd-gateway serve'.\n"
    )
    assert list(place.folder.iterdir()) == []


@pytest.mark.parametrize("command", [("serve",), ("worker",), ("records", "verify"), ("records", "adopt")])
def test_postgresql_without_its_extra_is_refused_in_one_sentence(place: Place, command: tuple[str, ...]) -> None:
    place.instance.mkdir()
    bind = f"127.0.0.1:{free_port()}"
    ended = place.run(*command, SDG_DATABASE_URL=POSTGRESQL, SDG_WORKER="external", SDG_BIND=bind)
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if "Starting gunicorn" not in line]
    assert line.removeprefix("Error: ").removeprefix("sd-gateway: ") == (
        "SDG_DATABASE_URL names PostgreSQL, whose driver is missing: pip install 'sd-gateway[postgres]'."
    )
    assert list(place.instance.iterdir()) == []


def test_pictures_on_sqlite_survive_a_kill(place: Place) -> None:
    # A folder of this name is in many a current folder, and is not the package.
    (place.folder / "app").mkdir()
    (place.folder / "app" / "__init__.py").write_text("raise SystemExit('another package of this name')")
    gateway = place.serve(SDG_WEBUI_URLS=place.simulator())
    gateway.await_ready()
    survive_a_kill(gateway)

    page = gateway.http.get("/docs")
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert gateway.http.get("/docs/swagger-ui-bundle.js").status_code == requests.codes.ok
    verified = place.run("records", "verify")
    assert (verified.returncode, verified.stdout) == (0, "3 records looked at, 0 problems\n")
    assert gateway.stop() == 0
    assert len(place.files("*.png")) == 3
    assert {path.name for path in place.folder.iterdir()} == {"app", "sd-gateway"}


def test_settings_and_gunicorns_options_are_honoured(place: Place) -> None:
    instance = place.folder / "elsewhere" / "instance"
    instance.mkdir(parents=True)
    (instance / "settings.toml").write_text("max_steps = 7\nweb_concurrency = 3\n")
    port, settings = free_port(), {"SDG_WEBUI_URLS": "simulator", "SDG_MAX_SIDE": "128"}
    gateway = place.serve("--bind", f"127.0.0.1:{port}", SDG_INSTANCE="elsewhere/instance", **settings)
    gateway.http.base = f"http://127.0.0.1:{port}"
    gateway.await_ready()
    until(lambda: len(children(gateway.running.pid)) == 3, "all processes are there")

    def refused(**changes: object) -> set[str]:
        answer = gateway.http.request("POST", "/txt2img", json=picture(**changes))
        return set(answer.json().get("errors", ()))

    assert refused(steps=8, width=136) == {"steps", "width"}
    assert made(gateway, steps=7)["simulated"] is True
    assert not place.instance.exists()

    # At SIGHUP gunicorn's side and the application read the settings again.
    (instance / "settings.toml").write_text("max_steps = 9\nweb_concurrency = 1\n")
    gateway.running.send_signal(signal.SIGHUP)
    until(lambda: len(children(gateway.running.pid)) == 1, "one process is left", 60)
    assert refused(steps=10, width=136) == {"steps", "width"}
    assert made(gateway, steps=9)["status"] == "succeeded"
    assert gateway.stop() == 0


def test_serve_can_not_make_its_folder(place: Place) -> None:
    place.folder.chmod(0o555)
    ended = place.run("serve")
    said = f"Error: SDG_INSTANCE: {place.instance} can't be made: Permission denied.\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_pictures_on_postgresql_by_a_worker_of_its_own_survive_a_kill(
    place_with: PlaceWith, postgres_server: PostgresServer
) -> None:
    # Its socket must be in reach of programs without root's rights.
    postgres_server.folder.chmod(0o755)
    place = place_with("postgres")
    settings = {
        "SDG_WEBUI_URLS": place.simulator(),
        "SDG_DATABASE_URL": postgres_server.url,
        "SDG_WORKER": "external",
    }
    gateway = place.serve(**settings)
    # A worker makes no folder; the database both may make.
    until(place.instance.is_dir, "the instance folder is there", 60)
    worker = place.start("worker", **settings)
    gateway.await_ready()
    survive_a_kill(gateway)

    verified = place.run("records", "verify", **settings)
    assert (verified.returncode, verified.stdout) == (0, "3 records looked at, 0 problems\n")
    assert place.files("gateway.db") == []
    assert (worker.stop(), gateway.stop()) == (0, 0)
