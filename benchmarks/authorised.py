"""Figure 10: what it costs to know who asks for a stored picture of 20 kB.

With a token and with a signed URL, beside a gateway of the same kind for which no token was made; and with a signed URL behind the
nginx of ``deploy/nginx/``, which keeps the picture for a moment, beside nginx alone on the same bytes.
"""

from __future__ import annotations

import shutil

from benchmarks import load, nginx, ways
from benchmarks.harness import Bench, Gateway, Stage
from benchmarks.report import SKIPPED, Row, say
from benchmarks.ways import Way

_BYTES = 20_000
_PROCESSES = 2
_SIGNED_SECONDS = 3600
_GOAL, _GOAL_BEHIND_NGINX = 0.85, 0.5
_BEHIND_NGINX = "pictures of signed URLs behind nginx, 20 kB, on repeats"


def run(bench: Bench) -> None:
    """Add the rows."""
    say(f"authorised pictures, {ways.CONNECTIONS} connections, client: {load.client()}")
    with bench.stage() as stage:
        simulator = stage.simulator(0.0)
        opened, closed = (stage.gateway([simulator], WEB_CONCURRENCY=_PROCESSES).start() for _ in range(2))
        path, other = closed.stored_picture(_BYTES), opened.stored_picture(_BYTES)
        by_token = {"Authorization": f"Bearer {closed.make_token()}"}
        with closed.line() as line:
            answer = line.post("/sign", {"paths": [path], "seconds": _SIGNED_SECONDS}, by_token)
        signed: str = answer["urls"][0]
        asked = {
            "open": Way(opened.port, other, [opened]),
            "token": Way(closed.port, path, [closed], by_token),
            "signed": Way(closed.port, signed, [closed]),
        }
        found = ways.measure(bench, asked)
        for name, what in {"token": "pictures with a token, 20 kB", "signed": "pictures of signed URLs, 20 kB"}.items():
            bench.add(ways.by_rate(what, found[name], "no token made", found["open"], _GOAL))
        if nginx.PROGRAM is None:
            say("  not judged: there is no nginx on this machine")
            bench.add(Row(_BEHIND_NGINX, "", "nginx is not installed", "", SKIPPED))
            return
        _behind_nginx(bench, stage, closed, signed)


def _behind_nginx(bench: Bench, stage: Stage, gateway: Gateway, signed: str) -> None:
    files = stage.folder / "files"
    files.mkdir()
    [place] = gateway.data.rglob(signed.partition("?")[0].rpartition("/")[2])
    shutil.copyfile(place, files / place.name)
    alone = nginx.alone(stage, files)
    behind = nginx.accelerated(stage, gateway)
    front = nginx.in_front(stage, behind)
    found = ways.measure(
        bench,
        {
            "gateway": Way(front.port, signed, [front, behind]),
            "nginx": Way(alone.port, f"/{place.name}", [alone]),
        },
    )
    bench.add(ways.by_rate(_BEHIND_NGINX, found["gateway"], "nginx", found["nginx"], _GOAL_BEHIND_NGINX))
