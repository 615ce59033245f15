"""Deletion leaves nothing: the files go, the folders that are named after a user, and in the end the rows."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.system.harness import Gateway, Simulator, Stage, picture, until

USER = "Alice Smith"


def rows(gateway: Gateway, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def change(gateway: Gateway, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(gateway.database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def delete(gateway: Gateway, job: dict[str, Any], filename: str | None = None) -> list[str]:
    answer = gateway.http.delete(f"/delete/{quote(job['id'])}/{job['type']}/{filename or job['name']}")
    assert answer.status_code == 200, answer.text
    deleted: list[str] = answer.json()["deleted"]
    return deleted


def folders(gateway: Gateway) -> list[Path]:
    return [path for path in gateway.data.rglob("*") if path.is_dir()]


def upkeep(gateway: Gateway) -> dict[str, int]:
    """The numbers of removed things that ``sd-gateway records upkeep`` reports, by what they were."""
    done = gateway.cli("records", "upkeep")
    assert done.returncode == 0, done.stderr
    return {what: int(count) for what, _, count in (line.rpartition(": ") for line in done.stdout.splitlines())}


def test_of_a_user_whose_records_are_deleted_nothing_is_left(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator])
    asked = picture(id=USER, batch_size=2)
    made = gateway.succeeded(gateway.send("txt2img", asked, key="once"))
    other = gateway.succeeded(gateway.post(id=USER))
    kept = gateway.succeeded(gateway.post(id="bob"))
    first, second = (image["filename"] for image in made["images"])
    assert delete(gateway, made, first) == [first]
    assert delete(gateway, made, second)[0] == second
    assert len(delete(gateway, other)) == 2
    # The name of a user's folder tells whose it is, so it goes with the last record.
    assert [path.name.partition("-")[0] for path in folders(gateway) if path.parent == gateway.data] == ["bob"]
    assert gateway.files() == {f"{kept['name']}-1-0.png", f"{kept['name']}-1.json"}

    assert gateway.send("txt2img", asked, key="once").status_code == 404
    # Or its worker would do the same a little earlier.
    assert gateway.stop() == 0
    # The command does not wait for the hour that the worker keeps them.
    change(gateway, "UPDATE jobs SET finished_at = finished_at - 1800000")
    assert upkeep(gateway)["rows of deleted jobs"] == 1
    assert rows(gateway, "SELECT name FROM jobs ORDER BY seq") == [(made["name"],), (kept["name"],)]
    gateway.restart()
    assert gateway.send("txt2img", asked, key="once").status_code == 404
    assert gateway.stop() == 0
    change(gateway, "UPDATE idempotency SET expires_at = expires_at - 90000")
    done = upkeep(gateway)
    assert (done["keys"], done["rows of deleted jobs"]) == (1, 1)
    assert rows(gateway, "SELECT name FROM jobs") == [(kept["name"],)]
    assert rows(gateway, "SELECT user_id FROM users") == []

    gateway.restart()
    again = gateway.succeeded(gateway.send("txt2img", asked, key="once"))
    assert again["name"] != made["name"]
    verify = gateway.cli("records", "verify")
    assert (verify.returncode, verify.stdout) == (0, "2 records looked at, 0 problems\n")


def test_what_a_lost_attempt_has_left_goes_with_the_record(stage: Stage, slow: Simulator) -> None:
    """Its files have the number of another claim, and unfinished ones have another name; no row names them."""
    gateway = stage.gateway([slow], processes=1)
    made = gateway.succeeded(gateway.post(batch_size=2))
    folder = gateway.find(f"{made['name']}-1.json").parent
    change(gateway, f"UPDATE jobs SET claims = 3, images = replace(images, '{made['name']}-1-', '{made['name']}-3-')")
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(f"{made['name']}-1", f"{made['name']}-3"))
    for left in ("-1-0.webp", "-2.json", "-2-1.jpg"):
        (folder / f"{made['name']}{left}").write_bytes(b"left")
    for half in ("-1-1.png", "-3.json"):
        (folder / f".{made['name']}{half}.tmp").write_bytes(b"half")
    assert set(delete(gateway, made)) == {f"{made['name']}-3{end}" for end in ("-0.png", "-1.png", ".json")}
    assert folders(gateway) == []


def test_the_worker_removes_rows_by_itself(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator])
    made = gateway.succeeded(gateway.post())
    delete(gateway, made)
    # An hour after the deletion; at its start, and once a minute.
    assert gateway.stop() == 0
    change(gateway, "UPDATE jobs SET finished_at = finished_at - 3600001")
    gateway.restart()
    until(lambda: rows(gateway, "SELECT * FROM jobs") == [], "the row is gone")
    until(lambda: rows(gateway, "SELECT * FROM users") == [], "the user's row is gone")


def test_a_slot_that_an_earlier_version_named_by_the_spelling_goes_on(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway(f"http://127.1:{simulator.port}", processes=1)
    gateway.succeeded(gateway.post())
    assert gateway.stop() == 0
    new, old = f"http://testhost:{simulator.port}", f"http://127.1:{simulator.port}"
    assert rows(gateway, "SELECT key FROM slots") == [(new,)]
    change(
        gateway,
        f"UPDATE slots SET key = '{old}', state = 'unclean', task_id = 'task(sdg-lost)'",
        f"UPDATE catalogues SET key = '{old}'",
        f"UPDATE workers SET webuis = '[\"{old}\"]'",
    )
    gateway.restart()
    gateway.succeeded(gateway.post())
    assert rows(gateway, "SELECT key FROM slots UNION SELECT key FROM catalogues") == [(new,)]
    assert rows(gateway, "SELECT webuis FROM workers") == [(f'["{new}"]',)]
    assert f"the slot {old} of an earlier version is now {new}" in gateway.text()
