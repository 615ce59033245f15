"""With SDG_LOG_FORMAT=json every line of every program is a JSON object, also where it can't start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import COMMAND, Gateway, Process, Simulator, Stage, clean_environ, free_port, run, until

GUNICORN = (sys.executable, "-m", "gunicorn", "wsgi:app")


def objects(text: str) -> list[dict[str, Any]]:
    """The lines, each of which is an object with the members that all have."""
    found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert all(list(line)[:5] == ["time", "process", "level", "logger", "message"] for line in found)
    return found


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        (GUNICORN, {"SDG_THREADS": "x"}, "SDG_THREADS: must be a whole number"),
        (GUNICORN, {"SDG_LOG_FORMAT": "xml"}, "SDG_LOG_FORMAT: must be one of text, json"),
        (GUNICORN, {"SDG_DATA_DIR": "/proc/nowhere"}, "SDG_DATA_DIR"),
        ((COMMAND, "serve"), {"SDG_STEPS": "1"}, "unknown setting SDG_STEPS"),
        ((COMMAND, "worker"), {}, "SDG_WORKER is not 'external'"),
        ((COMMAND, "records", "verify"), {"SDG_DATABASE_URL": "sqlite:////nowhere/x.db"}, "/nowhere/x.db"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_can_not_start_says_so_in_an_object(
    tmp_path: Path, command: tuple[str, ...], settings: dict[str, str], said: str
) -> None:
    given = {
        "SDG_LOG_FORMAT": "json",
        "SDG_INSTANCE": tmp_path,
        "SDG_DATA_DIR": tmp_path / "data",
        "SDG_DATABASE_URL": f"sqlite:///{tmp_path}/gateway.db",
        "SDG_BIND": f"127.0.0.1:{free_port()}",
        **settings,
    }
    ended = run(command, clean_environ(tmp_path, **given))
    assert ended.returncode == 1
    if given["SDG_LOG_FORMAT"] == "json":
        last = objects(ended.stderr)[-1]
        assert last["level"] == "CRITICAL"
        assert said in last["message"]
    else:
        assert said in ended.stderr


def test_the_simulator_and_the_commands_write_objects(stage: Stage, simulator: Simulator) -> None:
    port = free_port()
    command = [COMMAND, "simulate", "--port", str(port)]
    process = stage.add(Process("json", command, clean_environ(stage.folder, SDG_LOG_FORMAT="json"), stage.folder))
    until(lambda: f":{port}" in process.text(), "the simulator listens")
    assert process.stop() == 0
    assert [line["logger"] for line in objects(process.text())] == ["app.cli.speaking"]

    gateway: Gateway = stage.gateway([simulator], processes=1, SDG_LOG_FORMAT="json")
    told = {name: gateway.cli("queue", name) for name in ("pause", "list", "resume")}
    assert all(done.returncode == 0 for done in told.values())
    [paused] = objects(told["pause"].stderr)
    assert (paused["logger"], paused["event"]) == ("app.audit", "queue-paused")
    assert told["pause"].stdout == "the queue is paused\n"
    [swept] = objects(gateway.cli("records", "sweep").stderr)
    assert swept["message"].startswith("database ")
    audit = objects((gateway.database.parent / "audit.log").read_text("utf-8"))
    assert [line["event"] for line in audit] == ["queue-paused", "queue-resumed"]
    assert gateway.stop() == 0
    assert objects(gateway.text())[-1]["message"].startswith("Shutting down")
