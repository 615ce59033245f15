"""The modes of the files that a gateway makes, under a umask that forbids nothing; and those of files that it finds."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

from tests.system.harness import Gateway, Simulator, Stage, obey_file_modes, start


class Generous(Gateway):
    """A gateway whose umask is 000, and which makes every folder by itself. Modes bind it, even where root runs the tests."""

    def __init__(self, stage: Stage, simulator: Simulator) -> None:
        instance = stage.folder / "made" / "by" / "itself"
        settings = {"SDG_INSTANCE": instance, "SDG_DATA_DIR": None, "SDG_DATABASE_URL": None}
        super().__init__("generous", stage.folder, [simulator], **settings)
        self.data, self.database = instance / "data", instance / "gateway.db"

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self._running = start(self.command, self.environ, log, log, before=_forbid_nothing)


def _forbid_nothing() -> None:
    os.umask(0)
    obey_file_modes()


def modes(folder: Path) -> dict[Path, int]:
    """The mode of a folder and of each thing in it, but for what has just gone."""
    return {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if path.exists()}


def test_only_the_group_reads_what_it_makes_nobody_the_database_and_what_is_there_keeps_its_mode(
    stage: Stage, simulator: Simulator
) -> None:
    gateway = Generous(stage, simulator)
    stage.add(gateway)
    gateway.await_ready()
    job = gateway.succeeded(gateway.post())
    [image] = gateway.images(job)
    assert gateway.http.get(job["images"][0]["thumbnail_url"]).status_code == 200
    gateway.succeeded(gateway.post("img2img", init_images=base64.b64encode(image).decode()))
    database = gateway.database
    found = modes(stage.folder / "made")
    assert {database, Path(f"{database}-wal"), Path(f"{database}-shm")} <= found.keys()
    assert [path for path in found if path.name.endswith("-init.png")]
    assert [path for path in found if path.is_socket()]
    assert [path for path in found if ".variants" in path.parts and path.suffix == ".webp"]
    for path, mode in found.items():
        private = path.name.startswith(database.name) or path.name == "secret-keys" or path.is_socket()
        assert mode == (0o750 if path.is_dir() else 0o600 if private else 0o640), (path, oct(mode))

    assert gateway.stop() == 0
    # As the versions before have made them.
    for path in modes(database.parent):
        path.chmod(0o755 if path.is_dir() else 0o644)
    # As a restore by another user may leave it.
    gateway.find(job["images"][0]["filename"]).chmod(0o440)
    before = modes(database.parent)
    gateway.restart()
    assert gateway.images(job) == [image]
    # To make a variant, the file is locked without opening it for writing.
    assert gateway.http.get(f"{job['images'][0]['url']}?size=320").status_code == 200
    gateway.succeeded(gateway.post(seed="2"))
    after = modes(database.parent)
    assert before.items() <= after.items()
    assert {after[path] for path in after.keys() - before.keys() if path.suffix == ".png"} == {0o640}
