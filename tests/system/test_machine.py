"""The machine misbehaves: a full disk, a folder that can't be written, no descriptors left, damaged and missing files.

What must hold each time: clear errors meanwhile, earlier records readable, and no hand needed once the cause is gone.
"""

from __future__ import annotations

import base64
import contextlib
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from tests.system.harness import Gateway, Simulator, Stage, children, picture, until

#: Each breaks a machine of its own and starts a gateway on it.
pytestmark = pytest.mark.soak

#: Room for some small pictures and the database, bytes.
DISK_BYTES = 6 * 2**20
DOWN = (503, "database-unavailable")


def mount(*arguments: str | Path) -> None:
    """Mount something, or skip the test where that is not allowed."""
    program = shutil.which("mount")
    if program is None:
        pytest.skip("no mount command here")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    """Lazily: a process that still works there does not matter any more."""
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder)
    yield folder
    unmount(folder)


def fill(folder: Path) -> Path:
    """Take all the room there is, to the last byte; the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return ballast


def answer(response: requests.Response) -> tuple[int, str]:
    """Status and slug of a problem."""
    body = response.json()
    return response.status_code, body.get("type", body.get("status"))


def check_readable(gateway: Gateway, record: dict[str, Any], images: list[bytes]) -> None:
    """An earlier record is still there in every way."""
    assert [found["name"] for found in gateway.history(record["id"])] == [record["name"]]
    assert gateway.images(record) == images
    args = gateway.http.get(f"/get_args/{quote(record['id'])}/txt2img/{record['name']}")
    assert args.json()["seed"] == record["args"]["seed"]


def test_a_full_disk_fails_jobs_with_a_clear_error_until_there_is_room(
    disk: Path, stage: Stage, simulator: Simulator
) -> None:
    gateway = stage.gateway([simulator], processes=1, SDG_DATA_DIR=disk / "data")
    gateway.data = disk / "data"
    record = gateway.succeeded(gateway.post(id="early"))
    images, before = gateway.images(record), gateway.files()

    ballast = fill(disk)
    refused = gateway.post(id="late")
    assert answer(refused) == (503, "storage-failed")
    assert "its disk is full" in refused.json()["detail"]
    assert [(job["status"], job["images"]) for job in gateway.jobs("late")] == [("failed", [])]
    reference = gateway.http.get(record["images"][0]["url"]).content
    body = picture(id="late", init_images=base64.b64encode(reference).decode("ascii"))
    assert answer(gateway.send("img2img", body)) == (503, "storage-failed")
    assert len(gateway.jobs("late")) == 1, "a request was accepted without its reference image"
    assert answer(gateway.http.get("/readyz")) == (503, "storage-unavailable")
    check_readable(gateway, record, images)
    assert gateway.files() == before, "half a record was left"

    ballast.unlink()
    assert answer(gateway.http.get("/readyz")) == (200, "ok")
    late = gateway.succeeded(gateway.post(id="late"))
    assert gateway.images(late) == images
    assert gateway.files() == before | {late["images"][0]["filename"], f"{late['name']}-1.json"}


def test_a_full_disk_under_the_database_refuses_requests_and_loses_no_running_job(
    disk: Path, stage: Stage, slow: Simulator
) -> None:
    gateway = stage.gateway([slow], processes=1, SDG_DATABASE_URL=f"sqlite:///{disk}/gateway.db")
    record = gateway.succeeded(gateway.post(id="early"))
    images = gateway.images(record)
    running = gateway.post(id="running", batch_size=3, prefer="respond-async").json()
    until(lambda: gateway.status(running["url"]) == "running", "the job runs")

    ballast = fill(disk)
    assert answer(gateway.post(id="late")) == DOWN
    check_readable(gateway, record, images)
    until(lambda: slow.http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0, "the WebUI has answered")
    until(lambda: "the database can't be written; trying again" in gateway.text(), "the answer can't be committed")
    assert answer(gateway.http.delete(f"/delete/early/txt2img/{record['name']}")) == DOWN
    assert gateway.status(running["url"]) == "running"

    ballast.unlink()
    assert gateway.finished(running["url"])["status"] == "succeeded"
    gateway.succeeded(gateway.post(id="late"))
    # Nothing was sent to the WebUI a second time.
    assert slow.stats()["generations"] == 3
    check_readable(gateway, record, images)


def test_a_data_folder_that_became_read_only_is_told_and_used_again(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1)
    record = gateway.succeeded(gateway.post(id="early"))
    images, before = gateway.images(record), gateway.files()

    mount("--bind", gateway.data, gateway.data)
    try:
        mount("-o", "remount,bind,ro", gateway.data)
        assert answer(gateway.http.get("/readyz")) == (503, "storage-unavailable")
        assert answer(gateway.post(id="late")) == (503, "storage-failed")
        check_readable(gateway, record, images)
        # The row goes at once; its files when they can.
        gone = gateway.http.delete(f"/delete/early/txt2img/{record['name']}")
        assert gone.status_code == 200
        assert gateway.history("early") == []
        assert gateway.files() == before
    finally:
        unmount(gateway.data)

    assert answer(gateway.http.get("/readyz")) == (200, "ok")
    late = gateway.succeeded(gateway.post(id="late"))
    assert gateway.stop() == 0
    gateway.restart()
    left = {image["filename"] for image in late["images"]} | {f"{late['name']}-1.json"}
    until(lambda: gateway.files() == left, "the files of the deleted record are gone")


def test_a_process_without_file_descriptors_comes_back_by_itself(stage: Stage, slow: Simulator) -> None:
    gateway = Gateway("poor", stage.folder, [slow], processes=1)
    stage.add(gateway)
    gateway.await_ready()
    # The gateway refuses to start with so few, so the limit comes later, as when something else used them up.
    [pid] = children(gateway.running.pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (96, 96))
    record = gateway.succeeded(gateway.post(id="early"))
    images = gateway.images(record)
    jobs = [gateway.post(id="running", seed=str(seed), prefer="respond-async").json() for seed in range(4)]

    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with contextlib.ExitStack() as idle:
        # More connections than there are descriptors; the kernel takes what the process can't.
        for _ in range(150):
            idle.enter_context(socket.create_connection((host, int(port)), timeout=10))
        until(lambda: "Too many open files" in gateway.text(), "the descriptors are used up")

    gateway.await_ready()
    assert [gateway.finished(job["url"])["status"] for job in jobs] == ["succeeded"] * 4
    assert [record["args"]["seed"] for record in gateway.history("running")] == ["3", "2", "1", "0"]
    check_readable(gateway, record, images)
    assert slow.stats()["max_in_flight"] == 1


def test_a_damaged_picture_is_named_by_verify_and_harms_nothing_else(house: Gateway) -> None:
    record = house.succeeded(house.post(id="damaged", batch_size=2))
    damaged, whole = record["images"]
    content = house.http.get(whole["url"]).content
    path = house.find(damaged["filename"])
    path.write_bytes(path.read_bytes()[: damaged["bytes"] // 2])
    try:
        verify = house.cli("records", "verify")
        assert verify.returncode == 1
        assert [line for line in verify.stderr.splitlines() if damaged["filename"] in line]
        assert whole["filename"] not in verify.stderr
        # What lies there is served as it lies there: a gateway does not open pictures to show them.
        assert house.http.get(damaged["url"]).content == path.read_bytes()
        assert house.http.get(whole["url"]).content == content
        assert house.history("damaged") == [record]
    finally:
        assert house.http.delete(f"/delete/damaged/txt2img/{record['name']}").status_code == 200


def test_a_deleted_day_folder_is_missed_by_its_records_only(house: Gateway) -> None:
    record = house.succeeded(house.post(id="folderless"))
    filename = record["images"][0]["filename"]
    day = house.find(filename).parent
    shutil.rmtree(day)

    assert answer(house.http.get(record["images"][0]["url"])) == (404, "file-missing")
    assert house.history("folderless") == [record]
    verify = house.cli("records", "verify")
    assert verify.returncode == 1
    assert filename in verify.stderr

    again = house.succeeded(house.post(id="folderless"))
    assert house.find(again["images"][0]["filename"]).parent == day
    assert len(house.images(again)) == 1
    assert house.http.delete(f"/delete/folderless/txt2img/{record['name']}").status_code == 200
    assert house.history("folderless") == [again]
    assert house.cli("records", "verify").returncode == 0


def test_a_database_that_was_deleted_is_made_again_from_the_folder(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1)
    kept = [gateway.succeeded(gateway.post(id="用户", seed=str(seed), batch_size=2)) for seed in range(3)]
    gone = gateway.succeeded(gateway.post(id="用户", seed="9"))
    assert gateway.http.delete(f"/delete/{quote('用户')}/txt2img/{gone['name']}").status_code == 200
    before = gateway.history("用户")
    images = [gateway.images(record) for record in before]
    assert len(before) == len(kept)

    for path in gateway.database.parent.glob(f"{gateway.database.name}*"):
        path.unlink()
    # The open file has no name any more: what was accepted into it would be gone with the process.
    assert answer(gateway.http.get("/readyz")) == DOWN
    assert answer(gateway.post(id="late")) == DOWN
    assert gateway.history("用户") == before
    assert gateway.stop() == 0

    # A new database is not taken for the lost one.
    gateway.launch()
    assert gateway.wait() == 1
    assert "sd-gateway records adopt" in gateway.text()
    assert gateway.cli("records", "adopt").returncode == 0
    gateway.restart()
    assert gateway.history("用户") == []
    reindex = gateway.cli("records", "reindex")
    assert (reindex.returncode, reindex.stdout) == (0, "3 records added, 0 not readable\n")
    assert gateway.history("用户") == before
    assert [gateway.images(record) for record in before] == images
    gateway.succeeded(gateway.post(id="用户"))
