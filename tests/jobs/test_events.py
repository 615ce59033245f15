"""One line per transition, whatever stands in its values."""

from __future__ import annotations

import json
import logging

import pytest

from app.jobs.events import Announcer, Backlog, Transition
from app.jobs.model import Job
from tests.jobs.conftest import Gate


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.jobs.events")


def test_the_fields_stand_in_a_fixed_order_and_absent_ones_are_left_out(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    job = gate.accept("u1")
    Announcer().announce(Transition("accepted", job))
    Announcer().announce(Transition("answered", job, webui="big", attempt=2, seconds=4.2104))
    Announcer().announce(Transition("given back", job, webui="big", attempt=2, slug="webui-timeout"))
    named = f"user=u1 job={job.name} type=txt2img"
    assert caplog.messages == [
        f"event=accepted {named}",
        f"event=answered {named} webui=big attempt=2 seconds=4.210",
        f'event="given back" {named} webui=big attempt=2 slug=webui-timeout',
    ]


@pytest.mark.parametrize(
    "user",
    ["two words", "line\nevent=failed", 'tab\tquote"back\\slash', "a=b", "\u2028\u202e\x85\x1b[31m", "\U000e0001", "", "用户 一"],
)  # fmt: skip
def test_any_user_id_stays_within_its_quotes_on_one_line(
    user: str, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    Announcer().announce(Transition("accepted", gate.accept()._replace(user_id=user)))
    [line] = caplog.messages
    assert line.isprintable()
    quoted = line.removeprefix("event=accepted user=").partition(" job=")[0]
    assert json.loads(quoted) == user


def test_a_readable_user_id_of_any_script_is_written_as_it_is(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    Announcer().announce(Transition("accepted", gate.accept()._replace(user_id="用户-1@例子.cn")))
    assert " user=用户-1@例子.cn " in caplog.messages[0]


def test_only_a_failure_is_a_warning(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    job = gate.accept()
    Announcer().announce(Transition("stored", job))
    Announcer().announce(Transition("failed", job, slug="webui-refused"))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_a_backlog_is_written_once_and_in_order(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    job: Job = gate.accept()
    told: list[str] = []
    backlog = Backlog(Announcer([lambda transition: told.append(transition.event)]))
    backlog.add(Transition("claimed", job, "big", 1))
    backlog.add(Transition("sent", job, "big", 1))
    assert (told, caplog.messages) == (["claimed", "sent"], [])
    backlog.write()
    backlog.write()
    assert [message.split()[0] for message in caplog.messages] == ["event=claimed", "event=sent"]


def test_a_listener_that_fails_harms_neither_the_others_nor_the_log(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def broken(_transition: Transition) -> None:
        raise LookupError("a bug")

    listeners = [broken, lambda transition: told.append(transition.event)]
    Announcer(listeners).announce(Transition("stored", gate.accept()))
    assert told == ["stored"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
