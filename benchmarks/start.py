"""Figure 8: from starting gunicorn, and from ``make run`` on a clean clone, to the first accepted request."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import ASYNC, CHECKOUT, Bench, BenchmarkError, Line, Server, free_port, picture, until
from benchmarks.report import SKIPPED, Row, Sample, judged, milliseconds, say

_STARTS = 3
_GUNICORN_GOAL, _MAKE_GOAL = 3.0, 120.0
_MAKE_PATIENCE = 180.0


def run(bench: Bench) -> None:
    """Add a row for gunicorn and one for make."""
    _gunicorn(bench)
    _make(bench)


def _seconds_to_accepted(server: Server, cwd: Path, patience: float) -> float:
    """Launch a gateway; seconds until a request was accepted."""
    body = json.dumps(picture(width=64, height=64)).encode()

    def accepted() -> bool:
        server.check()
        with contextlib.suppress(OSError, http.client.HTTPException), Line(server.port) as line:
            return line.send("POST", "/txt2img", body, ASYNC).status == http.client.ACCEPTED
        return False

    begun = time.perf_counter()
    server.launch(cwd)
    until(accepted, "the first accepted request", patience, pause=0.005)
    return time.perf_counter() - begun


def _gunicorn(bench: Bench) -> None:
    say("start of gunicorn")
    ours, bare = [], []
    for _ in range(bench.count(_STARTS)):
        with bench.stage() as stage:
            gateway = stage.gateway([stage.simulator(0.0)])
            ours.append(milliseconds(_seconds_to_accepted(gateway, CHECKOUT, 60)))
        with bench.stage() as stage:
            port = free_port()
            command = [sys.executable, "-m", "gunicorn", "-c", "benchmarks/bare_gunicorn.py"]
            begun = time.perf_counter()
            stage.server("bare", port, command, BARE_BIND=f"127.0.0.1:{port}", BARE_FOLDER=stage.folder)
            with Line(port) as line:
                line.send("GET", "/none")
            bare.append(milliseconds(time.perf_counter() - begun))
    sample, other = Sample(ours), Sample(bare)
    bench.add(
        Row(
            "from gunicorn to the first 202, empty database",
            f"median {sample.median / 1000:.2f} s, longest {max(ours) / 1000:.2f} s",
            f"bare app to its first answer {other.median / 1000:.2f} s",
            f"≤ {_GUNICORN_GOAL:g} s (chosen here)",
            judged(sample.median <= _GUNICORN_GOAL * 1000),
        )
    )


def _make(bench: Bench) -> None:
    what, goal = "from make run on a clean clone to the first 202", f"≤ {_MAKE_GOAL:g} s (chosen here)"
    say("start of a clean clone")
    reason = _missing()
    if reason is None:
        try:
            seconds, setup = _clone_and_run(bench)
        except (BenchmarkError, subprocess.SubprocessError) as error:
            reason = str(error)
    if reason is not None:
        say(f"  make run could not be measured: {reason}")
        bench.add(Row(what, "", "", goal, SKIPPED))
        return
    baseline = f"of it {setup:.1f} s make setup (pip)"
    bench.add(Row(what, f"{seconds:.1f} s", baseline, goal, judged(seconds <= _MAKE_GOAL)))


def _missing() -> str | None:
    for program in ("git", "make"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None if (CHECKOUT / ".git").exists() else "this is no git checkout"


def _clone_and_run(bench: Bench) -> tuple[float, float]:
    """Clone what is committed, and run it; seconds to the first 202, and those of them until the environment stood.

    Packages come from pip's cache as it is: ``make bench`` has itself filled it when it made the environment.
    """
    with bench.stage() as stage:
        clone = stage.folder / "clone"
        subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(clone)], check=True, capture_output=True)
        port = free_port()
        # pip finds its cache and its settings by the caller's environment; the gateway's own settings stay out.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SDG_", "MAKE", "MFLAGS"))}
        environ |= {"SDG_BIND": f"127.0.0.1:{port}"}
        log = stage.folder / "make.log"
        python = f"PYTHON={Path(sys.base_prefix) / 'bin' / 'python3'}"
        server = stage.add(Server(port, ["make", "run", python], environ, log))
        begun = time.time()
        seconds = _seconds_to_accepted(server, clone, _MAKE_PATIENCE)
        return seconds, (clone / ".venv" / ".stamp").stat().st_mtime - begun
