"""The files of ``deploy/`` fit each other, the settings, the table of problems and the documents.

nginx runs with its files in ``tests/system/test_nginx*.py``, the gateway under its units' limits in ``tests/system/test_units.py``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.config import SETTINGS, load
from app.problems import PROBLEMS
from app.runtime.parking import QUIET_SECONDS

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = ("sd-gateway.service", "sd-gateway-worker.service")
NGINX, UNIT, WORKER, ENVIRON = (
    (DEPLOY / name).read_text("utf-8")
    for name in ("nginx/sd-gateway.conf", *(f"systemd/{unit}" for unit in UNITS), "systemd/sd-gateway.env.example")
)
ANALYZE = shutil.which("systemd-analyze")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze (package systemd) is not installed")
#: Of ``systemd-analyze security``, tenths.
_EXPOSURE = 25
#: More than gunicorn's own graceful_timeout, which is 10 s longer than SDG_DRAIN_TIMEOUT.
_LONGER_THAN_DRAINING = 15


def found(pattern: str, text: str) -> str:
    """The group of a pattern's only match in the text."""
    [value] = re.findall(pattern, text, re.MULTILINE)
    return str(value)


def location(name: str) -> str:
    """What nginx's configuration says of a location."""
    return NGINX.split(f"\n    location {name} {{\n")[1].split("\n    }\n")[0]


def default(name: str) -> float:
    """The default of a setting that is a number."""
    [setting] = [setting for setting in SETTINGS if setting.name == name]
    return float(setting.default)


def examples(text: str) -> dict[str, str]:
    """Every setting of the example, those that are commented out included."""
    return dict(re.findall(r"^#?(SDG_\w+)=(\S*)$", text, re.MULTILINE))


def test_every_file_is_known_here_and_named_in_the_documents() -> None:
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    known = {"nginx/nginx.conf", "nginx/sd-gateway.conf", "systemd/sd-gateway.env.example"}
    assert files == known | {f"systemd/{unit}" for unit in UNITS}
    text = (ROOT / "docs/deployment.md").read_text("utf-8")
    assert sorted(file for file in files if f"deploy/{file}" not in text) == []


def test_nginxs_problems_are_those_of_the_gateway_or_its_own_and_documented() -> None:
    documents = [
        json.loads(text.replace("$sd_gateway_error", "500").replace("$sd_gateway_retry_after", "5"))
        for text in re.findall(r"'(\{\"type\".*\})';", NGINX)
    ]
    assert {document["status"] for document in documents} >= {400, 404, 413, 414, 429, 431, 500, 502, 503, 504}
    api = (ROOT / "docs/api.md").read_text("utf-8")
    for document in documents:
        assert document.pop("request") == "$sd_gateway_request"
        assert sorted(document.keys() - {"retry_after"}) == ["detail", "status", "title", "type"]
        assert ("retry_after" in document) == (document["status"] in (429, 503))
        slug, entry = document["type"], PROBLEMS.get(document["type"])
        assert entry is None or (document["status"], document["title"]) == (entry.status, entry.title), slug
        assert f"| `{slug}` | {document['status']} | {document['title']} |" in api


def test_nginx_waits_longer_and_takes_more_than_the_gateway_does() -> None:
    assert int(found(r"client_max_body_size (\d+)m;", NGINX)) == default("SDG_MAX_BODY_MB") + 1
    assert int(found(r"proxy_read_timeout (\d+)s;", location("/"))) >= default("SDG_SYNC_TIMEOUT") + 30
    # The upstream's; the server's own stands deeper.
    kept = int(found(r"upstream [^}]*keepalive_timeout (\d+)s;", NGINX))
    assert kept <= int(found(r"^keepalive = (\d+)$", (ROOT / "app/serving/gunicorn_conf.py").read_text("utf-8"))) - 2


def test_nginx_lets_as_many_wait_and_watch_as_the_gateway_does() -> None:
    processes = 2
    waiting = processes * (default("SDG_MAX_WAITERS") + default("SDG_MAX_STREAMS"))
    one, everybody = (int(found(rf"limit_conn sd_gateway_{zone} (\d+);", NGINX)) for zone in ("address", "all"))
    assert everybody >= one + 1000 >= waiting + 2000
    # Two connections for each request, and some for clients that have sent none yet.
    main = (DEPLOY / "nginx/nginx.conf").read_text("utf-8")
    connections = int(found(r"worker_connections (\d+);", main))
    assert connections >= 2 * everybody + 4000
    assert int(found(r"worker_rlimit_nofile (\d+);", main)) >= connections + 2 * everybody


def test_nginx_waits_longer_for_an_event_than_the_gateway_is_silent_and_sends_watchers_away_for_as_long() -> None:
    assert int(found(r"proxy_read_timeout (\d+)s;", location("= /sd-gateway-events"))) >= 3 * QUIET_SECONDS
    eventstream = (ROOT / "app/api/http/eventstream.py").read_text("utf-8")
    assert found(r'"retry: (\d+)\\n', NGINX) == found(r"^_RETRY_BUSY: Final = (\d+)$", eventstream)


def test_nginx_the_units_and_the_example_of_their_settings_name_the_same_places() -> None:
    settings = examples(ENVIRON)
    assert found(r"^    server (\S+);$", NGINX) == settings["SDG_BIND"] == "unix:/run/sd-gateway/gateway.sock"
    assert found(r"^RuntimeDirectory=(.*)$", UNIT) == found(r"^StateDirectory=(.*)$", UNIT) == "sd-gateway"
    assert settings["SDG_INSTANCE"] == "/var/lib/sd-gateway"
    assert found(r"alias (\S+);", NGINX) == f"{settings['SDG_INSTANCE']}/data/"
    for unit in (UNIT, WORKER):
        assert found(r"^EnvironmentFile=(.*)$", unit) in ENVIRON
        assert found(r"^WorkingDirectory=(.*)$", unit) == "/srv/sd-gateway"


def test_the_settings_of_the_example_are_accepted_as_they_stand(tmp_path: Path) -> None:
    assert load(dict(re.findall(r"^(SDG_\w+)=(\S*)$", ENVIRON, re.MULTILINE)), tmp_path).accel == "nginx"
    assert load(examples(ENVIRON), tmp_path).worker == "external"


def test_the_units_wait_for_the_draining() -> None:
    for unit in (UNIT, WORKER):
        seconds = int(found(r"^TimeoutStopSec=(\d+)s$", unit))
        assert seconds >= default("SDG_DRAIN_TIMEOUT") + _LONGER_THAN_DRAINING
        assert found(r"^KillSignal=(.*)$", unit) == "SIGTERM"
        # SIGTERM to every process at once would end gunicorn's processes behind its back.
        assert found(r"^KillMode=(.*)$", unit) == "mixed"


def test_both_units_are_confined_alike() -> None:
    gateway, worker = (unit[unit.index("CapabilityBoundingSet=") :].splitlines() for unit in (UNIT, WORKER))
    more = [line for line in gateway if line not in worker and not line.startswith("#")]
    assert more == ["SystemCallFilter=@chown"]
    assert [line for line in worker if line not in gateway] == []


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_reads_the_unit_without_a_word(tmp_path: Path, unit: str) -> None:
    # It looks for the programs, which the interpreter's folder has.
    folder = str(Path(sys.executable).parent)
    text = (DEPLOY / "systemd" / unit).read_text("utf-8").replace("/srv/sd-gateway/.venv/bin", folder)
    (tmp_path / unit).write_text(text)
    done = subprocess.run([str(ANALYZE), "verify", tmp_path / unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "WantedBy=multi-user.target" in text


@needs_analyze
@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_is_exposed_as_little_as_it_can_be(unit: str) -> None:
    limit = ["security", "--offline=true", "--no-pager", f"--threshold={_EXPOSURE}", str(DEPLOY / "systemd" / unit)]
    done = subprocess.run([str(ANALYZE), *limit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
