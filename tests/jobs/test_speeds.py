"""The speeds of WebUIs: measured with every answer, by model."""

from __future__ import annotations

import pytest

from app.jobs.catalogues import Catalogues
from app.jobs.slot_keys import rename_slots
from app.jobs.slots import Slots
from app.jobs.speeds import KEPT, Speeds, read_speeds
from app.jobs.sql.database import Database
from app.jobs.table import JobTable
from tests.jobs.conftest import EVERYTHING, Gate, success_of

SMALL, LARGE = '{"model":"small"}', '{"model":"large"}'


@pytest.fixture
def measure(gate: Gate, table: JobTable):
    """Make one job with a model on a WebUI, which takes so many seconds."""

    def run(seconds: float | None, *, slot: str = "gpu0", requirements: str = SMALL, cost: float = 10.0) -> None:
        gate.accept(cost=cost, requirements=requirements)
        claim = gate.claim(slot)
        table.answered(claim, seconds, None, EVERYTHING)
        assert table.succeed(claim, success_of(claim))

    return run


@pytest.fixture
def speeds(database: Database):
    return lambda: read_speeds(database)


class TestMeasuring:
    def test_nothing_is_known_before_the_first_answer(self, measure, speeds) -> None:
        assert speeds().of("gpu0", "small") is None
        measure(None)
        assert speeds().of("gpu0", "small") is None

    def test_seconds_are_counted_for_a_unit_of_cost(self, measure, speeds) -> None:
        measure(5.0, cost=10.0)
        assert speeds().of("gpu0", "small") == 0.5

    def test_one_slow_load_of_a_model_changes_nothing(self, measure, speeds) -> None:
        for seconds in (10.0, 10.0, 300.0, 10.0):
            measure(seconds)
            assert speeds().of("gpu0", "small") == pytest.approx(1.0)

    def test_the_load_before_the_first_job_is_forgotten_with_the_second(self, measure, speeds) -> None:
        measure(300.0)
        measure(10.0)
        assert speeds().of("gpu0", "small") == pytest.approx(1.0)

    def test_a_new_speed_is_known_after_a_few_jobs(self, measure, speeds) -> None:
        for _ in range(10):
            measure(10.0)
        for _ in range(KEPT - 1):
            measure(20.0)
        assert speeds().of("gpu0", "small") == pytest.approx(2.0)

    def test_a_slot_that_was_lost_meanwhile_measures_nothing(
        self, gate: Gate, table: JobTable, slots: Slots, speeds
    ) -> None:
        gate.accept()
        claim = gate.claim()
        table.losses.release_orphans("gpu0", "host/one")
        table.answered(claim, 1.0, None, EVERYTHING)
        assert speeds().of("gpu0", "") is None

    def test_a_slot_that_is_passed_on_is_measured_too(self, gate: Gate, table: JobTable, speeds) -> None:
        gate.accept(cost=10.0, requirements=SMALL)
        gate.accept(cost=10.0, requirements=SMALL)
        claim = gate.claim()
        assert table.answered(claim, 4.0, "next task", EVERYTHING) is not None
        assert speeds().of("gpu0", "small") == pytest.approx(0.4)


class TestFallback:
    def test_each_webui_and_model_has_its_own(self, measure, speeds) -> None:
        measure(10.0, slot="gpu0", requirements=SMALL)
        measure(40.0, slot="gpu0", requirements=LARGE)
        measure(20.0, slot="gpu1", requirements=SMALL)
        found = speeds()
        assert [found.of("gpu0", "small"), found.of("gpu0", "large"), found.of("gpu1", "small")] == [1.0, 4.0, 2.0]
        # Nothing was measured: over the models there, and over the other WebUIs with this model.
        assert found.of("gpu0", "third") == found.of("gpu0", None) == 2.5
        assert found.of("gpu1", "large") == 2.0
        assert found.of("gpu2", "small") == 1.5
        assert found.measured("gpu2", "small") is None

    def test_what_an_earlier_version_measured_counts_until_something_is(self) -> None:
        class Row:
            def __init__(self, model: str, recent: str) -> None:
                self.slot, self.model, self.recent = "gpu0", model, recent

        old = Row("", f"{3.0:<16.9e}")
        assert Speeds([old]).of("gpu0", "small") == 3.0
        assert Speeds([old, Row("small", f"{1.0:<16.9e}")]).of("gpu0", "large") == 1.0


class TestSlots:
    def test_a_renamed_slot_keeps_its_speeds(self, measure, speeds, database: Database) -> None:
        measure(10.0, slot="gpu0")
        rename_slots(database, lambda key: {"gpu0": "big"}.get(key, key))
        assert speeds().measured("big", "small") == 1.0
        assert speeds().measured("gpu0", "small") is None

    def test_where_two_slots_become_one_its_own_speeds_stay(self, measure, speeds, database: Database) -> None:
        measure(10.0, slot="gpu0")
        measure(20.0, slot="gpu1")
        measure(20.0, slot="gpu0", requirements=LARGE)
        rename_slots(database, lambda key: {"gpu0": "gpu1"}.get(key, key))
        assert (speeds().measured("gpu1", "small"), speeds().measured("gpu1", "large")) == (2.0, 2.0)

    def test_they_go_with_their_slot(self, measure, speeds, slots: Slots, catalogues: Catalogues) -> None:
        measure(10.0, slot="gpu0")
        measure(20.0, slot="gpu1")
        slots.register("host/one", "host", ["gpu0"], only=True)
        assert catalogues.drop_unconfigured() == ["gpu1"]
        assert speeds().measured("gpu1", "small") is None
        assert speeds().measured("gpu0", "small") == 1.0
