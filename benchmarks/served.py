"""Figure 5: stored pictures over HTTP, beside nginx on the same files and beside a bare gunicorn app that calls send_file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import load
from benchmarks.harness import Bench, Gateway, Server, Stage, free_port
from benchmarks.report import SKIPPED, Row, judged, say

_SIZES: Mapping[str, int] = {"1.5 MB": 1_500_000, "20 kB": 20_000}
_CONNECTIONS = 16
_ROUNDS = 3
_SECONDS = 2.0
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
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    types {{ image/png png; }}
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""
_PROCESSES = 2

Rates = dict[str, list[load.Load]]


def run(bench: Bench) -> None:
    """Add a row for the large file against nginx, and one for the small file against the bare app."""
    say(f"pictures served, {_CONNECTIONS} connections, client: {load.client()}")
    with bench.stage() as stage:
        servers, paths = _set_up(stage)
        found = {size: _measure(bench, servers, paths[size]) for size in _SIZES}
    for size, loads in found.items():
        for name, each in loads.items():
            say(f"  {size}, {name}: {_middle(each)}")
    big, small = found.values()
    bench.add(_against("nginx", big, 0.8, "1.5 MB"))
    bench.add(_against("bare", small, 0.7, "20 kB"))


def _middle(loads: list[load.Load]) -> load.Load:
    return sorted(loads, key=lambda each: each.rate)[len(loads) // 2]


def _against(baseline: str, loads: Rates, goal: float, size: str) -> Row:
    what, wanted = f"pictures served, {size}", f"≥ {goal:g}× {baseline}"
    gateway = loads["gateway"]
    if baseline not in loads:
        say(f"  not judged: there is no {baseline} on this machine")
        return Row(what, str(_middle(gateway)), f"{baseline} is not installed", wanted, SKIPPED)
    # Of the two rates that the row shows, so that it can be checked by eye.
    ratio = _middle(gateway).rate / _middle(loads[baseline]).rate
    others = ", ".join(f"{name} {_middle(each)}" for name, each in loads.items() if name != "gateway")
    return Row(what, str(_middle(gateway)), f"{others}; {ratio:.2f}× {baseline}", wanted, judged(ratio >= goal))


def _measure(bench: Bench, servers: Mapping[str, Server], paths: Mapping[str, str]) -> Rates:
    """All servers in turns, round after round."""
    rates: Rates = {name: [] for name in servers}
    for name, server in servers.items():
        load.fetch(server.port, paths[name], _CONNECTIONS, 0.5)
    for _ in range(3 if bench.quick else _ROUNDS):
        for name, server in servers.items():
            rates[name].append(load.fetch(server.port, paths[name], _CONNECTIONS, _SECONDS))
    return rates


def _set_up(stage: Stage) -> tuple[dict[str, Server], dict[str, dict[str, str]]]:
    """The servers by name, and for each size the path by the server's name."""
    gateway = stage.gateway([stage.simulator(0.0)], WEB_CONCURRENCY=_PROCESSES).start()
    folder = stage.folder / "files"
    folder.mkdir()
    paths = {size: _put(gateway, folder, bytes_) for size, bytes_ in _SIZES.items()}
    bare = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "benchmarks/bare_gunicorn.py"]
    servers: dict[str, Server] = {
        "gateway": gateway,
        "bare": stage.server(
            "bare", bare, command, BARE_BIND=f"127.0.0.1:{bare}", BARE_FOLDER=folder, WEB_CONCURRENCY=_PROCESSES
        ),
    }
    if _NGINX is not None:
        servers["nginx"] = _nginx(stage, folder, _NGINX)
    return servers, paths


def _put(gateway: Gateway, folder: Path, size: int) -> dict[str, str]:
    """A file of this size as a record's picture, and the same bytes for the others."""
    job = gateway.make(width=64, height=64)
    place = gateway.file(job)
    place.write_bytes(os.urandom(size))
    name = f"{size}.png"
    shutil.copyfile(place, folder / name)
    return {"gateway": job["images"][0]["url"], "bare": f"/{name}", "nginx": f"/{name}"}


def _nginx(stage: Stage, root: Path, program: str) -> Server:
    port, prefix = free_port(), stage.folder / "nginx"
    prefix.mkdir()
    # Started by root it would change to a user that may not read the temporary folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    conf = prefix / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(user=user, processes=_PROCESSES, port=port, root=root))
    return stage.server("nginx", port, [program, "-p", str(prefix), "-c", str(conf), "-e", "stderr"])
