"""The search for secrets in the logs of the test run finds them: otherwise its silence would say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.leaks import Watch

TOKEN = "sdg_AbCd1234_" + "0aB" * 12 + "zz"
PROMPT = "a very secret lighthouse, 灯塔"

PLANTED = {
    "token": f"[INFO] got {TOKEN}",
    "part of a token": f"[INFO] got {TOKEN[:30]}",
    "signature": "[INFO] GET /get_images/u/txt2img/a.png?exp=1&sig=AbC-_9xyz",
    "session": "Cookie: sdg_session=ImFiYyI.abc",
    "credentials": "http://me:pw@127.0.0.1:7860 is down",
    "header": "{'Authorization': 'Basic bWU6cGFzcw=='}",
    "prompt": f"posted {PROMPT}",
    "prompt in JSON": '{"message": "posted a very secret lighthouse, \\u706f\\u5854"}',
    "password": "connecting as me with correct-horse",
    "key": "signing with MDEyMzQ1Njc4OWFiY2RlZg==",
}


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    watch = Watch()
    watch.log(tmp_path / "gateway.log")
    watch.sent({"prompt": PROMPT, "negative_prompt": "", "id": "somebody's id"})
    watch.settings(
        {
            "SDG_WEBUI_URLS": "http://127.0.0.1:1,big=http://me:correct%2Dhorse@127.0.0.1:2",
            "SDG_SECRET_KEYS": "k1:MDEyMzQ1Njc4OWFiY2RlZg==",
        }
    )
    return watch


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found(watch: Watch, tmp_path: Path, name: str) -> None:
    (tmp_path / "gateway.log").write_text(f"a line\n{PLANTED[name]}\nanother\n", "utf-8")
    [found] = watch.leaks()
    assert found.endswith(PLANTED[name])
    with pytest.raises(AssertionError, match="in logs"):
        watch.check()


@pytest.mark.parametrize("name", ["audit.log", "audit.log.1"])
@pytest.mark.parametrize("leak", ["token", "prompt", "password"])
def test_audit_logs_are_searched_too(watch: Watch, tmp_path: Path, name: str, leak: str) -> None:
    """Of every instance folder that a program was started with, though it may have made none."""
    (tmp_path / "gateway.log").write_text("a line\n")
    watch.settings({"SDG_INSTANCE": str(tmp_path / "instance")})
    watch.check()
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / name).write_text(f"app.audit: event=x {PLANTED[leak]}\n", "utf-8")
    [found] = watch.leaks()
    assert found.startswith(str(tmp_path / "instance" / name))


def test_a_log_that_can_not_be_searched_is_no_silence(watch: Watch, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"removed before they were searched.*gateway\.log"):
        watch.check()
    (tmp_path / "gateway.log").touch()
    with pytest.raises(AssertionError, match="none of 1 logs holds anything"):
        watch.check()
    Watch().check()


def test_a_folder_that_goes_is_searched_before(watch: Watch, tmp_path: Path) -> None:
    log = tmp_path / "folder" / "gateway.log"
    log.parent.mkdir()
    log.write_text(PLANTED["token"])
    watch.log(log)
    (tmp_path / "gateway.log").write_text("a line\n")
    watch.read_below(log.parent)
    log.unlink()
    [found] = watch.leaks()
    assert found.startswith(str(log))


def test_what_a_program_wrote_is_searched_too(watch: Watch) -> None:
    watch.output("sd-gateway tokens list", f"INFO {TOKEN}")
    assert watch.leaks()


def test_what_redaction_leaves_is_no_leak(watch: Watch, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    log.write_text(
        "sdg_AbCd1234_… ?exp=1&sig=… http://…@127.0.0.1:7860 user=me@example.com\n"
        '{"message": "sdg_AbCd1234_\\u2026 sig=\\u2026 http://\\u2026@x", "user": "somebody\'s id"}\n',
        "utf-8",
    )
    watch.check()
