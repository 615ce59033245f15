"""A whole gateway inside the test's process, in front of simulators that listen: what the tests of the upper floors share."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image
from sqlalchemy import text

from app.config import load
from app.gateway.waiting import PendingJob, Reading
from app.jobs import slots as slots_module
from app.jobs.model import Identity, Job, Slot
from app.jobs.slots import Slots
from app.jobs.worker import timing
from app.services import Services, build
from app.simulator import SimulatorServer, SimulatorSettings
from app.simulator.faults import Fault

#: Seconds after which a condition that should have come true counts as one that never will.
DEADLINE = 30.0
USER = "u1"
#: How the files of the data folder begin that are no records': the worker's lock, and the id.
#: A small request as its schema passes it.
FIELDS = {
    "id": USER, "prompt": "a lighthouse", "negative_prompt": "blurry", "width": 64, "height": 64, "seed": "7", "steps": 2,
    "hr_upscaler": "", "cfg_scale": 7.0, "style": "", "batch_size": 1,
}  # fmt: skip


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait until the condition is true, and return what it returned."""
    end = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come true"
        pause.wait(0.01)
    return found


def png_bytes(size: tuple[int, int] = (64, 64), color: str = "navy") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, color).save(data, "PNG")
    return data.getvalue()


def png_base64(size: tuple[int, int] = (64, 64), color: str = "navy") -> str:
    return base64.b64encode(png_bytes(size, color)).decode("ascii")


def simulator(**settings: Any) -> SimulatorServer:
    """A simulator that takes no time for its pictures."""
    return SimulatorServer(SimulatorSettings(**{"seconds_per_image": 0.0} | settings))


def hurry(monkeypatch: Any) -> None:
    """Let the worker wait fractions of a second where it waits seconds; no test depends on how short they are."""
    for name, seconds in {
        "HEARTBEAT_SECONDS": 0.2,
        "POLL_SECONDS": 0.03,
        "SUSPECT_SECONDS": 0.05,
        "CLAIM_POLL_SECONDS": 0.1,
        "RETRY_SECONDS": 0.02,
        "UPKEEP_SECONDS": 0.1,
    }.items():
        monkeypatch.setattr(timing, name, seconds)
    monkeypatch.setattr(slots_module, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr("app.webui.driver._IDLE_TWICE_SECONDS", 0.02)


def make_clean(slots: Slots, *keys: str) -> None:
    """Make new slots clean, as if their WebUIs had been seen idle."""
    for key in keys:
        assert slots.begin_quiescing(key, "nobody") is not None
        slots.end_quiescing(key, "nobody", "clean")


def settled(posted: dict[str, Any] | PendingJob[dict[str, Any]]) -> dict[str, Any]:
    """The job at the end of its wait, for which this thread waits."""
    if isinstance(posted, dict):
        return posted
    woken = threading.Event()
    posted.begin(woken.set)
    while True:
        woken.wait(max(posted.deadline - time.monotonic(), 0.0))
        woken.clear()
        view = posted.answer()
        if view is not None:
            return view


class Gateway:
    """The services of one process, with the files of ``folder``; two of them may share a folder as two processes would."""

    def __init__(self, folder: Path, empty_database: Path, urls: Iterable[str], **settings: object) -> None:
        database = folder / "gateway.db"
        if not database.exists():
            shutil.copy(empty_database, database)
        instance = folder / "instance"
        instance.mkdir(exist_ok=True)
        environ = {
            "SDG_DATA_DIR": str(folder / "data"),
            "SDG_DATABASE_URL": f"sqlite:///{database}",
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": ",".join(urls),
            "SDG_DRAIN_TIMEOUT": "0",
        }
        environ |= {f"SDG_{name.upper()}": str(value) for name, value in settings.items()}
        self.services: Services = build(load(environ, instance))
        self.data = folder / "data"

    def start(self, *, elected: bool = True) -> Self:
        """Start the worker and wait until it is ready for jobs."""
        self.services.start(worker=True, elected=elected)
        until(lambda: not self.services.readiness(), "readiness")
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.services.drain()

    # -- asking ------------------------------------------------------------------------------------------------------

    def post(
        self, type_: str = "txt2img", *, wait: float = DEADLINE, key: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Post a request and wait for its end."""
        posted = FIELDS | fields
        if type_ == "img2img":
            posted = {"init_images": png_base64()} | posted
        fingerprint = json.dumps(posted, sort_keys=True)
        return settled(
            self.services.acceptance.post(type_, posted, fingerprint=fingerprint, idempotency_key=key, wait=wait)
        )

    def accept(self, type_: str = "txt2img", **fields: Any) -> dict[str, Any]:
        """Post a request and don't wait."""
        return self.post(type_, wait=0, **fields)

    def shown(self, view: dict[str, Any]) -> dict[str, Any]:
        """The job as a client is shown it now."""
        reading = self.services.long_polls.job(Identity(view["id"], view["type"], view["name"]))
        assert isinstance(reading, Reading)
        return reading.view

    def job(self, view: dict[str, Any]) -> Job:
        return self.services.table.queries.get(view["id"], view["type"], view["name"])

    def finished(self, view: dict[str, Any]) -> Job:
        """The job, once it is."""
        until(lambda: self.job(view).finished, f"the end of {view['name']}")
        return self.job(view)

    def claimed(self, view: dict[str, Any], times: int = 1) -> Job:
        """The job, once it was claimed so often."""
        until(lambda: self.job(view).claims >= times, f"claim {times}")
        return self.job(view)

    def slot(self) -> Slot:
        """The slot of the only WebUI."""
        [key] = self.services.slots.configured()
        slot = self.services.slots.get(key)
        assert slot is not None
        return slot

    def clean_slot(self) -> Slot:
        """The slot, once it is clean."""
        until(lambda: self.slot().state == "clean", "a clean slot")
        return self.slot()

    def files(self) -> set[str]:
        """The names of all files of records; hidden ones of the data folder itself are the gateway's own."""
        # Unlike rglob, os.walk does not mind a folder that goes meanwhile.
        return {name for folder, _, names in os.walk(self.data) if Path(folder) != self.data for name in names}

    def sql(self, statement: str, **values: object) -> Any:
        """Change or read rows behind everybody's back."""
        with self.services.database.write() as connection:
            result = connection.execute(text(statement), values)
            return result.all() if result.returns_rows else result.rowcount


def arm(server: SimulatorServer, kind: str, count: int = 1, *, seconds: float | None = None) -> None:
    """Arm a fault of a simulator."""
    server.simulator.faults.arm(Fault(kind, count, seconds))


def stats(server: SimulatorServer) -> dict[str, Any]:
    return server.simulator.stats.as_dict()
