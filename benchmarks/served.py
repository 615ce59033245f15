"""Figure 5: stored pictures over HTTP, and what CPU time a request for one costs the server.

20 kB through Flask, beside a bare app that calls send_file under gunicorn's own gthread worker; a variant of 20 kB that was made
before, beside such a picture; the making of a thumbnail, beside Pillow alone; 1.5 MB behind nginx with ``SDG_ACCEL=nginx``, beside
nginx alone on the same file; and what many slow readers there leave of the gateway.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from benchmarks import load, machine, variants
from benchmarks.harness import CHECKOUT, Bench, Gateway, Process, Server, Stage, free_port, until
from benchmarks.report import SKIPPED, Row, judged, milliseconds, say
from benchmarks.slow_readers import while_they_read

_BIG, _SMALL = "1.5 MB", "20 kB"
_SIZES: Mapping[str, int] = {_BIG: 1_500_000, _SMALL: 20_000}
_CONNECTIONS = 16
_ROUNDS = 5
_SECONDS = 2.0
_PROCESSES = 2
#: Of each process: together far fewer than the slow readers.
_THREADS = 8
_PROMPTLY_MS = 100.0
#: Debian puts it where only root's PATH looks.
_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
_NGINX_CONF = """
daemon off;
{user}worker_processes {processes};
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    {site}
}}
"""
_FILES_ONLY = """
    sendfile on;
    tcp_nopush on;
    types {{ image/png png; }}
    server {{ listen 127.0.0.1:{port}; root {root}; }}
"""


@dataclass(frozen=True)
class _Way:
    """A server of a picture: where it is asked, and the processes that answer."""

    port: int
    path: str
    processes: Sequence[Process]

    def cpu_seconds(self) -> float:
        """CPU time that its processes have used."""
        return sum(machine.cpu_seconds(process.pid) for process in self.processes)


@dataclass(frozen=True)
class _Figures:
    """The results of the rounds of one way to serve a picture: requests a second, and milliseconds of CPU a request."""

    rates: Sequence[float]
    cpu_ms: Sequence[float]

    @property
    def cost(self) -> float:
        """CPU time of a request, milliseconds."""
        return statistics.median(self.cpu_ms)

    def __str__(self) -> str:
        return f"{self.cost:.2f} ms of CPU, {statistics.median(self.rates):.0f}/s"


def run(bench: Bench) -> None:
    """Add the rows."""
    say(f"pictures served, {_CONNECTIONS} connections, client: {load.client()}")
    with bench.stage() as stage:
        gateway = stage.gateway([stage.simulator(0.0)], WEB_CONCURRENCY=_PROCESSES).start()
        files = stage.folder / "files"
        files.mkdir()
        urls = {size: _put(gateway, files, bytes_) for size, bytes_ in _SIZES.items()}
        bare = _bare(stage, files)
        plain = _Way(gateway.port, urls[_SMALL], [gateway])
        bench.add(_row(_measure(bench, {"gateway": plain, "bare": bare}), f"pictures served, {_SMALL}", "bare", 1.8))
        bench.add(_later_variant(bench, gateway, plain))
        bench.add(variants.first(bench, gateway))
        if _NGINX is None:
            say("  not judged: there is no nginx on this machine")
            bench.add(Row(f"pictures served by SDG_ACCEL=nginx, {_BIG}", "", "nginx is not installed", "", SKIPPED))
            return
        _behind_nginx(bench, stage, gateway, urls[_BIG])


def _later_variant(bench: Bench, gateway: Gateway, picture: _Way) -> Row:
    made = _Way(gateway.port, variants.made_before(gateway, _SIZES[_SMALL]), [gateway])
    found = _measure(bench, {"gateway": made, "picture": picture})
    return _row(found, f"variants served that were made before, {_SMALL}", "picture", 1.1)


def _behind_nginx(bench: Bench, stage: Stage, gateway: Gateway, url: str) -> None:
    port = free_port()
    files_only = _FILES_ONLY.format(port=port, root=stage.folder / "files")
    alone = _Way(port, f"/{_SIZES[_BIG]}.png", [_nginx(stage, port, files_only)])
    accelerated = _accelerated(stage, gateway)
    nginx = _in_front(stage, accelerated)
    front = _Way(nginx.port, url, [nginx, accelerated])
    found = _measure(bench, {"gateway": front, "nginx": alone})
    bench.add(_row(found, f"pictures served by SDG_ACCEL=nginx, {_BIG}", "nginx", 2.5))
    bench.add(_slow_readers(bench, front))


def _slow_readers(bench: Bench, front: _Way) -> Row:
    quick, found = while_they_read(front.port, front.path, 4.0 if bench.quick else 8.0)
    return Row(
        f"/livez behind nginx while {found.readers} readers take {_BIG} at 100 kB/s",
        f"{quick}; {_PROCESSES * _THREADS} threads; {found.bytes_per_second / found.readers / 1e3:.0f} kB/s each",
        "",
        f"p95 ≤ {_PROMPTLY_MS:g} ms",
        judged(quick.p95 <= _PROMPTLY_MS),
    )


def _row(found: Mapping[str, _Figures], what: str, baseline: str, goal: float) -> Row:
    ratio = found["gateway"].cost / found[baseline].cost
    return Row(
        what,
        str(found["gateway"]),
        f"{baseline} {found[baseline]}; {ratio:.2f}× its CPU",
        f"CPU ≤ {goal:g}× {baseline}",
        judged(ratio <= goal),
    )


def _measure(bench: Bench, ways: Mapping[str, _Way]) -> dict[str, _Figures]:
    """All ways in turns, round after round."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        load.fetch(way.port, way.path, _CONNECTIONS, 0.5)
    for _ in range(3 if bench.quick else _ROUNDS):
        for name, way in ways.items():
            before = way.cpu_seconds()
            done = load.fetch(way.port, way.path, _CONNECTIONS, _SECONDS)
            costs[name].append(milliseconds(way.cpu_seconds() - before) / done.requests)
            rates[name].append(done.rate)
    return {name: _Figures(rates[name], costs[name]) for name in ways}


def _put(gateway: Gateway, folder: Path, size: int) -> str:
    """A file of this size as a record's picture, and the same bytes for the others; the URL of the picture."""
    job = gateway.make(width=64, height=64)
    place = gateway.file(job)
    place.write_bytes(os.urandom(size))
    shutil.copyfile(place, folder / f"{size}.png")
    url: str = job["images"][0]["url"]
    return url


def _bare(stage: Stage, folder: Path) -> _Way:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "benchmarks/bare_gunicorn.py"]
    settings = {"BARE_BIND": f"127.0.0.1:{port}", "BARE_FOLDER": folder, "WEB_CONCURRENCY": _PROCESSES}
    return _Way(port, f"/{_SIZES[_SMALL]}.png", [stage.server("bare", port, command, **settings)])


def _accelerated(stage: Stage, gateway: Gateway) -> Gateway:
    """A second gateway over the same records, whose pictures nginx sends; on a Unix socket, as docs/operations.md recommends."""
    shared = {name: gateway.environ[name] for name in ("SDG_DATA_DIR", "SDG_DATABASE_URL", "SDG_WEBUI_URLS")}
    few = {"WEB_CONCURRENCY": _PROCESSES, "SDG_THREADS": _THREADS, "SDG_MAX_WAITERS": _THREADS // 2}
    bind = f"unix:{stage.folder}/gateway.sock"
    # Behind a proxy nobody is served without a token, unless everybody is.
    alone = {"SDG_WORKER": "external", "SDG_ACCEL": "nginx", "SDG_BIND": bind, "SDG_AUTH": "none"}
    second = stage.gateway([], **shared, **few, **alone)
    second.launch()
    return second


def _in_front(stage: Stage, gateway: Gateway) -> Server:
    """The nginx of ``deploy/nginx/`` in front of a gateway, as soon as both answer."""
    port = free_port()
    text = (CHECKOUT / "deploy/nginx/sd-gateway.conf").read_text("utf-8")
    changes = {
        "server unix:/run/sd-gateway/gateway.sock;": f"server {gateway.environ['SDG_BIND']};",
        "listen 80 default_server": f"listen 127.0.0.1:{port} default_server",
        "alias /var/lib/sd-gateway/data/;": f"alias {gateway.environ['SDG_DATA_DIR']}/;",
        # Every client here has the same address, and asks as fast as it can.
        "rate=300r/s;": "rate=1000000r/s;",
    }
    for old, new in changes.items():
        text = text.replace(old, new)
    nginx = _nginx(stage, port, text)
    with nginx.line() as line:
        until(lambda: line.send("GET", "/readyz").status == HTTPStatus.OK, "the gateway behind nginx answers")
    return nginx


def _nginx(stage: Stage, port: int, site: str) -> Server:
    """Nginx with these server blocks, one of which listens on the port."""
    prefix = stage.folder / f"nginx-{port}"
    prefix.mkdir()
    # Started by root it would change to a user that may not read the temporary folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    conf = prefix / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(user=user, processes=_PROCESSES, site=site))
    return stage.server("nginx", port, [str(_NGINX), "-p", str(prefix), "-c", str(conf), "-e", "stderr"])
