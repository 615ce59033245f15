"""The ``sd-gateway`` command over the data of a gateway."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.system.harness import Gateway, Simulator, Stage, at_once

HOUR = 3600.0


def age(path: Path) -> Path:
    """Make a file two hours old."""
    then = time.time() - 2 * HOUR
    os.utime(path, (then, then))
    return path


def stray(gateway: Gateway, job: dict[str, Any], name: str) -> Path:
    """A copy of a record's image beside it, under another name."""
    image = gateway.find(job["images"][0]["filename"])
    return Path(shutil.copy(image, image.with_name(name)))


def test_sweep_verify_and_reindex(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1)
    post = gateway.post
    kept, damaged, shortened, deleted = [
        gateway.succeeded(post(id="用户", seed=str(seed), batch_size=2)) for seed in range(4)
    ]
    gone = shortened["images"][0]["filename"]
    user = quote("用户")
    assert gateway.http.delete(f"/delete/{user}/txt2img/{gone}").status_code == 200
    assert gateway.http.delete(f"/delete/{user}/txt2img/{deleted['name']}").status_code == 200

    # What no row accounts for is swept away, at once where a row says so, else after an hour; and verify opens every file.
    proper = gateway.files()
    name, rest = kept["name"], "-1-0.png"
    of_no_row = age(stray(gateway, kept, f"{name[:-8]}00000000-init.png"))
    young = stray(gateway, kept, f"{name[:-8]}11111111-init.png")
    of_dead_claim = stray(gateway, kept, f"{name}-9-0.png")
    torn = age(stray(gateway, kept, f".{name}{rest}.0123abcd.tmp"))
    foreign = age(stray(gateway, kept, "holiday.png"))
    image = gateway.find(damaged["images"][1]["filename"])
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    sweep, verify = at_once([lambda name=name: gateway.cli("records", name) for name in ("sweep", "verify")])
    assert (sweep.returncode, sweep.stdout) == (0, "3 stray files removed\n")
    assert gateway.files() == proper | {young.name, foreign.name}
    assert not any(path.exists() for path in (of_no_row, of_dead_claim, torn))
    assert verify.returncode == 1
    assert verify.stdout == "3 records looked at, 1 problems\n"
    assert [line for line in verify.stderr.splitlines() if ".png" in line or ".json" in line] == [
        f"用户 txt2img {image.name}: The image is broken or truncated."
    ]
    image.write_bytes(whole)

    # Reindex: the folder alone is a full backup.
    before = gateway.history("用户")
    assert gateway.stop() == 0
    for path in gateway.database.parent.glob("gateway.db*"):
        path.unlink()
    assert gateway.cli("records", "adopt", cold=True).returncode == 0
    reindex = gateway.cli("records", "reindex")
    assert (reindex.returncode, reindex.stdout) == (0, "3 records added, 0 not readable\n")
    gateway.restart()
    after = gateway.history("用户")
    assert after == before
    assert [record["name"] for record in after] == [shortened["name"], damaged["name"], kept["name"]]
    assert [image["filename"] for image in after[0]["images"]] == [shortened["images"][1]["filename"]]
    assert all(gateway.images(record) for record in after)


def test_an_external_worker_does_the_work(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], ready=False, SDG_WORKER="external")
    worker = stage.worker(gateway, cold=True)
    # For the embedded worker of the web processes no other is needed, and two would meet on a WebUI.
    refused = gateway.cli("worker", SDG_WORKER="embedded")
    assert refused.returncode == 1
    assert "SDG_WORKER is not 'external'" in refused.stderr
    gateway.await_ready()

    # Sync clients live in processes that have no worker.
    answers = at_once([lambda seed=seed: gateway.post(seed=str(seed)) for seed in range(3)])
    assert [answer.status_code for answer in answers] == [200] * 3
    assert simulator.stats()["max_in_flight"] == 1
    assert worker.stop() == 0
