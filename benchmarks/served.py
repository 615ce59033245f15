"""Figure 5: stored pictures over HTTP, and what CPU time a request for one costs the server.

20 kB through Flask, beside a bare app that calls send_file under gunicorn's own gthread worker; a variant of 20 kB that was made
before, beside such a picture; the making of a thumbnail, beside Pillow alone; 1.5 MB behind nginx with ``SDG_ACCEL=nginx``, beside
nginx alone on the same file; and what many slow readers there leave of the gateway.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import load, nginx, variants, ways
from benchmarks.harness import Bench, Gateway, Stage, free_port
from benchmarks.report import SKIPPED, Row, judged, say
from benchmarks.slow_readers import while_they_read
from benchmarks.ways import Way

_BIG, _SMALL = "1.5 MB", "20 kB"
_SIZES = {_BIG: 1_500_000, _SMALL: 20_000}
_PROCESSES = 2
_PROMPTLY_MS = 100.0


def run(bench: Bench) -> None:
    """Add the rows."""
    say(f"pictures served, {ways.CONNECTIONS} connections, client: {load.client()}")
    with bench.stage() as stage:
        gateway = stage.gateway([stage.simulator(0.0)], WEB_CONCURRENCY=_PROCESSES).start()
        files = stage.folder / "files"
        files.mkdir()
        urls = {size: gateway.stored_picture(bytes_, files / f"{bytes_}.png") for size, bytes_ in _SIZES.items()}
        plain = Way(gateway.port, urls[_SMALL], [gateway])
        found = ways.measure(bench, {"gateway": plain, "bare": _bare(stage, files)})
        bench.add(ways.by_cost(f"pictures served, {_SMALL}", found["gateway"], "bare", found["bare"], 1.8))
        bench.add(_later_variant(bench, gateway, plain))
        bench.add(variants.first(bench, gateway))
        if nginx.PROGRAM is None:
            say("  not judged: there is no nginx on this machine")
            bench.add(Row(f"pictures served by SDG_ACCEL=nginx, {_BIG}", "", "nginx is not installed", "", SKIPPED))
            return
        _behind_nginx(bench, stage, gateway, urls[_BIG])


def _later_variant(bench: Bench, gateway: Gateway, picture: Way) -> Row:
    made = Way(gateway.port, variants.made_before(gateway, _SIZES[_SMALL]), [gateway])
    found = ways.measure(bench, {"made": made, "picture": picture})
    what = f"variants served that were made before, {_SMALL}"
    return ways.by_cost(what, found["made"], "picture", found["picture"], 1.1)


def _behind_nginx(bench: Bench, stage: Stage, gateway: Gateway, url: str) -> None:
    alone = nginx.alone(stage, stage.folder / "files")
    # Behind a proxy nobody is served without a token, unless everybody is.
    behind = nginx.accelerated(stage, gateway, SDG_AUTH="none")
    front = nginx.in_front(stage, behind)
    way = Way(front.port, url, [front, behind])
    found = ways.measure(bench, {"gateway": way, "nginx": Way(alone.port, f"/{_SIZES[_BIG]}.png", [alone])})
    what = f"pictures served by SDG_ACCEL=nginx, {_BIG}"
    bench.add(ways.by_cost(what, found["gateway"], "nginx", found["nginx"], 2.5))
    bench.add(_slow_readers(bench, way))


def _slow_readers(bench: Bench, front: Way) -> Row:
    quick, found = while_they_read(front.port, front.path, 4.0 if bench.quick else 8.0)
    return Row(
        f"/livez behind nginx while {found.readers} readers take {_BIG} at 100 kB/s",
        f"{quick}; {nginx.PROCESSES * nginx.THREADS} threads; {found.bytes_per_second / found.readers / 1e3:.0f} kB/s each",
        "",
        f"p95 ≤ {_PROMPTLY_MS:g} ms",
        judged(quick.p95 <= _PROMPTLY_MS),
    )


def _bare(stage: Stage, folder: Path) -> Way:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "benchmarks/bare_gunicorn.py"]
    settings = {"BARE_BIND": f"127.0.0.1:{port}", "BARE_FOLDER": folder, "WEB_CONCURRENCY": _PROCESSES}
    return Way(port, f"/{_SIZES[_SMALL]}.png", [stage.server("bare", port, command, **settings)])
