"""The gateway and its worker under the limits of the systemd units in ``deploy/systemd/``, behind the shipped nginx.

There is no systemd here to start them: ``confined.py`` puts the limits in force, and a mount namespace in which everything but the
state folder is read-only stands for ProtectSystem=strict.
"""

from __future__ import annotations

import base64
import ctypes
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import confined
from tests.system.harness import CHECKOUT, COMMAND, NGINX, Gateway, Process, Simulator, Stage, picture, until
from tests.system.leaks import WATCH

_UNITS = CHECKOUT / "deploy/systemd"
#: Of nginx; any group that is not root's first one.
_USER, _GROUP = "www-data", "games"


def _why_not() -> str | None:
    """The reason to skip these tests on this machine; None if they can run."""
    if NGINX is None or confined.ANALYZE is None:
        return "nginx and systemd-analyze are needed"
    try:
        ctypes.CDLL(confined.LIBRARY)
    except OSError:
        return f"{confined.LIBRARY} is not installed"
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "only root can make a mount namespace"
    return None


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))


@pytest.fixture
def open_stage() -> Iterator[Stage]:
    """A folder that nginx's user can reach, outside of /tmp, which the units have for themselves."""
    folder = Path(tempfile.mkdtemp(prefix="sdg-units-", dir="/var/tmp"))
    folder.chmod(0o755)
    stage = Stage(folder)
    try:
        yield stage
    finally:
        stage.clear()
        WATCH.read_below(folder)
        shutil.rmtree(folder)


def _under(unit: str, state: Path, command: list[str]) -> list[str]:
    """A command line that runs another one as the unit would."""
    confine = [sys.executable, str(CHECKOUT / "tests/system/confined.py"), str(_UNITS / unit), *command]
    script = f"""
        mount --make-rprivate / && {_private_tmp(state.parent)} && mount --bind {state} {state} &&
        mount -o remount,bind,ro / && exec {shlex.join(confine)}
    """
    return ["setpriv", "--regid", _GROUP, "--clear-groups", "unshare", "--mount", "sh", "-c", script]


def _private_tmp(folder: Path) -> str:
    """The commands for PrivateTmp=; a checkout that lies in /tmp stays to be seen there, to be read only."""
    if not CHECKOUT.is_relative_to("/tmp"):
        return "mount -t tmpfs tmpfs /tmp"
    kept = folder / "checkout"
    return (
        f"mkdir -p {kept} && mount --bind {CHECKOUT} {kept} && mount -t tmpfs tmpfs /tmp && mkdir -p {CHECKOUT} &&"
        f" mount --bind {kept} {CHECKOUT} && mount -o remount,bind,ro {CHECKOUT}"
    )


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def state(open_stage: Stage) -> Path:
    """The units' StateDirectory."""
    state = open_stage.folder / "state"
    state.mkdir(mode=0o750)
    shutil.chown(state, group=_GROUP)
    return state


@pytest.fixture
def told(state: Path) -> Iterator[socket.socket]:
    """The socket on which systemd listens for ``Type=notify``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(state / "notify"))
        told.settimeout(30)
        yield told


def test_the_gateway_does_everything_under_the_limits_of_its_unit(
    open_stage: Stage, simulator: Simulator, state: Path, told: socket.socket
) -> None:
    bind = f"unix:{state}/gateway.sock"
    environ = {"SDG_WORKER": "external", "SDG_ACCEL": "nginx", "SDG_BIND": bind, "SDG_INSTANCE": state}
    gateway = Gateway("state", open_stage.folder, [simulator], **environ)
    worker = Process(
        "worker", _under("sd-gateway-worker.service", state, [COMMAND, "worker"]), gateway.environ, state.parent
    )
    gateway.command = _under("sd-gateway.service", state, gateway.command)
    gateway.environ["NOTIFY_SOCKET"] = str(state / "notify")
    open_stage.add(gateway)
    nginx = open_stage.nginx(gateway, gateway.data, user=f"{_USER} {_GROUP}")
    assert told.recv(1000).startswith(b"READY=1")
    # From here on requests wait in the socket's queue, at the worst.
    assert nginx.http.get("/livez").status_code == 200
    open_stage.add(worker)
    until(lambda: nginx.http.get("/readyz").json()["status"] == "ok", "the worker works", 30)
    for process in (gateway, worker):
        found = _status(process.running.pid)
        assert (found["NoNewPrivs"], found["Seccomp"], found["Seccomp_filters"]) == ("1", "2", "2"), process.name
        assert (int(found["CapBnd"], 16), int(found["CapEff"], 16), found["Umask"]) == (0, 0, "0027"), process.name

    made = nginx.http.request("POST", "/txt2img", json=picture(width=256, height=256))
    assert made.status_code == 200, made.text
    # nginx's user reads it as a member of the group, and nobody else could.
    drawn = nginx.http.get(made.json()["images"][0]["url"])
    assert drawn.status_code == 200
    # Larger than what is kept in memory, so that it waits in the private /tmp.
    body = picture(init_images=base64.b64encode(drawn.content).decode()) | {"prompt": "a" * 10_000}
    padded = {**body, "init_images": body["init_images"] + "\n" * 2_000_000}
    again = nginx.http.request("POST", "/img2img", json=padded)
    assert again.status_code == 200, again.text
    assert nginx.http.delete(made.json()["url"].replace("/jobs/", "/delete/")).status_code == 200

    files = [path for path in gateway.data.rglob("*") if path.suffix in (".png", ".json")]
    assert files
    for path in (*files, *{file.parent for file in files}):
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path
    assert worker.stop() == 0
    assert gateway.stop() == 0
    for process in (gateway, worker):
        assert "Traceback" not in process.text()
        assert "not permitted" not in process.text()
