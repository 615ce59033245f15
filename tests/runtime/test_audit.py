"""The audit file: appended to by everybody, not for all to read, and found again after a rotation."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.runtime import audit, request_ids


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path) -> Iterator[None]:
    before = os.umask(0)
    audit.keep(tmp_path, "text")
    yield
    os.umask(before)
    logger = logging.getLogger("app.audit")
    for handler in [handler for handler in logger.handlers if isinstance(handler, audit.AuditFile)]:
        logger.removeHandler(handler)
        handler.close()


def said(path: Path) -> list[str]:
    return [line.partition(" app.audit: ")[2] for line in path.read_text("utf-8").splitlines()]


def test_a_line_is_in_the_log_and_in_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "audit.log"
    assert not file.exists()
    with request_ids.serving("r-1"):
        audit.audit("token-created", token="AbCd1234", name="my app", expires=None, by="ada")
    line = 'event=token-created token=AbCd1234 name="my app" by=ada'
    assert said(file) == [f"{line} request=r-1"]
    assert caplog.messages == [line]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_it_goes_on_in_a_new_file_after_a_rotation(tmp_path: Path) -> None:
    file, rotated = tmp_path / "audit.log", tmp_path / "audit.log.1"
    audit.audit("one")
    file.rename(rotated)
    audit.audit("two")
    audit.audit("three")
    assert (said(rotated), said(file)) == (["event=one"], ["event=two", "event=three"])


def test_what_another_process_has_appended_stays(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    audit.audit("one")
    with file.open("a") as other:
        other.write("x app.audit: event=theirs\n")
    audit.audit("two")
    assert said(file) == ["event=one", "event=theirs", "event=two"]


def test_where_the_file_can_not_be_written_the_log_says_so_and_the_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "audit.log").mkdir()
    audit.audit("queue-paused", by="ada")
    assert caplog.messages[0] == f"a line is missing in {tmp_path}/audit.log: event=queue-paused by=ada: Is a directory"
    assert caplog.messages[1:] == ["event=queue-paused by=ada"]
