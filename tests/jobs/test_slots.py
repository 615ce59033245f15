"""The contract of the rows about WebUIs, over both engines; how a slot is held and quiesced stands in test_table.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import text

from app.jobs.catalogues import Catalogues
from app.jobs.model import Failure
from app.jobs.slot_keys import rename_slots
from app.jobs.slots import ALIVE_SECONDS, FORGOTTEN_SECONDS, PROBE_SECONDS, Slots
from app.jobs.sql.database import Database
from app.jobs.table import JobTable, Serving
from tests.inprocess import make_clean
from tests.jobs.conftest import Gate

Advance = Callable[[float], None]


class TestWorkers:
    def test_a_registered_workers_webuis_are_configured_in_its_order(self, slots: Slots) -> None:
        assert slots.configured() == ["gpu0", "gpu1"]
        slot = slots.get("gpu1")
        assert (slot.state, slot.owner, slot.health) == ("clean", None, "unknown")

    def test_a_new_slot_is_unclean_and_a_known_one_stays_as_it_is(self, slots: Slots) -> None:
        slots.register("host/two", "host", ["gpu0", "renamed"], only=True)
        assert (slots.get("gpu0").state, slots.get("renamed").state) == ("clean", "unclean")

    def test_the_only_worker_of_a_host_replaces_the_earlier_ones(self, slots: Slots) -> None:
        slots.register("host/two", "host", ["gpu1"], only=True)
        assert slots.configured() == ["gpu1"]
        assert not slots.heartbeat("host/one").known

    def test_external_workers_of_one_host_stand_side_by_side(self, slots: Slots) -> None:
        slots.register("host/two", "host", ["gpu1", "gpu2"], only=False)
        assert slots.configured() == ["gpu0", "gpu1", "gpu2"]
        assert slots.heartbeat("host/one").known
        assert slots.heartbeat("host/two").known

    def test_a_worker_of_another_host_is_left_alone(self, slots: Slots) -> None:
        slots.register("other/one", "other", ["gpu9"], only=True)
        assert set(slots.configured()) == {"gpu0", "gpu1", "gpu9"}

    def test_registering_again_changes_the_list(self, slots: Slots) -> None:
        slots.register("host/one", "host", ["gpu7"], only=False)
        assert slots.configured() == ["gpu7"]

    def test_a_worker_gone_for_an_hour_is_forgotten_by_the_next(self, slots: Slots, advance: Advance) -> None:
        advance(FORGOTTEN_SECONDS - 60)
        slots.register("other/one", "other", ["gpu8"], only=False)
        assert "gpu0" in slots.configured()
        advance(120)
        slots.register("other/one", "other", ["gpu8"], only=False)
        assert slots.configured() == ["gpu8"]

    def test_a_worker_is_alive_as_long_as_it_sends_heartbeats(self, slots: Slots, advance: Advance) -> None:
        assert slots.worker_alive()
        advance(ALIVE_SECONDS + 1)
        assert not slots.worker_alive()
        assert slots.heartbeat("host/one").known
        assert slots.worker_alive()

    def test_nobody_is_alive_in_an_empty_table(self, database: Database) -> None:
        empty = Slots(database)
        assert not empty.worker_alive()
        assert empty.configured() == []
        assert empty.get("gpu0") is None


class TestQuiescing:
    def test_a_clean_slot_needs_none(self, slots: Slots) -> None:
        assert slots.begin_quiescing("gpu0", "host/one") is None
        assert slots.begin_quiescing("unknown", "host/one") is None

    def test_only_one_worker_quiesces(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        gate.accept()
        table.give_back(gate.claim(), slot="unclean", failure=Failure("webui-error", "It failed."))
        start = Barrier(4)

        def quiesce(number: int) -> bool:
            start.wait()
            return slots.begin_quiescing("gpu0", f"host/{number}") is not None

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(quiesce, range(4))) == 1

    def test_a_worker_that_does_not_quiesce_can_not_end_it(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        gate.accept()
        table.give_back(gate.claim(), slot="unclean")
        slots.begin_quiescing("gpu0", "host/one")
        slots.end_quiescing("gpu0", "host/two", "clean")
        assert slots.get("gpu0").state == "quiescing"

    def test_a_worker_that_died_while_it_quiesced_leaves_the_slot_to_the_next(
        self, gate: Gate, table: JobTable, slots: Slots, advance: Advance
    ) -> None:
        gate.accept()
        table.give_back(gate.claim(task="lost-task"), slot="unclean")
        slots.begin_quiescing("gpu0", "host/one")
        advance(11)
        assert table.losses.reclaim("host/two") == []
        assert slots.begin_quiescing("gpu0", "host/two").task_id == "lost-task"


class TestRename:
    """Earlier versions gave each spelling of one WebUI a slot of its own."""

    OLD, OTHER, NEW = "http://127.1:7860", "http://localhost.:7860", "http://host:7860"

    def renamed(self, slots: Slots, old: Sequence[str]) -> dict[str, str]:
        return rename_slots(slots.database, lambda key: self.NEW if key in old else key)

    def rows(self, database: Database, statement: str) -> list[Any]:
        with database.read() as connection:
            return [*connection.execute(text(statement)).all()]

    def test_everything_that_names_a_slot_names_the_new_one(
        self, gate: Gate, table: JobTable, slots: Slots, catalogues: Catalogues, database: Database
    ) -> None:
        slots.register("host/one", "host", [self.OLD, "gpu1", self.NEW], only=True)
        make_clean(slots, self.OLD, self.NEW)
        catalogues.put(self.OLD, "a")
        for _ in range(2):
            gate.accept()
        refused = gate.claim(self.OLD)
        table.give_back(refused, slot="clean", failure=Failure("webui-cannot", "x"), elsewhere=True)
        slots.keep_doubt(self.OLD, "doubt")
        running = gate.claim(self.OLD, serving=Serving(1000, frozenset(), "doubt"))
        assert (running.job.seq, self.renamed(slots, [self.OLD])) == (refused.job.seq + 1, {self.OLD: self.NEW})
        assert slots.get(self.OLD) is None
        slot = slots.get(self.NEW)
        assert (slot.state, slot.owner, slot.task_id) == ("held", "host/one", "task")
        assert slots.traits(self.NEW).doubt == "doubt"
        assert slots.configured() == [self.NEW, "gpu1"]
        assert catalogues.bodies([self.OLD, self.NEW]) == {self.NEW: "a"}
        assert self.rows(database, "SELECT slot FROM refusals") == [(self.NEW,)]
        assert self.rows(database, "SELECT slot FROM jobs WHERE slot IS NOT NULL") == [(self.NEW,)]
        # The worker goes on under the new name.
        moved = dataclasses.replace(running, slot=self.NEW)
        assert gate.finish(moved)
        assert slots.get(self.NEW).state == "clean"
        assert self.renamed(slots, [self.OLD]) == {}

    @pytest.mark.parametrize("cautious", [OLD, OTHER, NEW])
    def test_of_several_rows_the_most_cautious_one_stays(
        self, cautious: str, gate: Gate, table: JobTable, slots: Slots, database: Database
    ) -> None:
        slots.register("host/one", "host", [self.OLD, self.OTHER, self.NEW], only=True)
        make_clean(slots, self.OLD, self.OTHER, self.NEW)
        gate.accept()
        table.give_back(gate.claim(cautious, task="lost"), slot="unclean")
        assert self.renamed(slots, [self.OLD, self.OTHER]) == {self.OLD: self.NEW, self.OTHER: self.NEW}
        slot = slots.get(self.NEW)
        assert (slot.state, slot.task_id) == ("unclean", "lost")
        assert self.rows(database, "SELECT key FROM slots ORDER BY key") == [("gpu0",), ("gpu1",), (self.NEW,)]
        assert slots.configured() == [self.NEW]

    def test_a_held_slot_goes_before_one_that_is_only_suspect(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        slots.register("host/one", "host", [self.OLD, self.NEW], only=True)
        make_clean(slots, self.OLD, self.NEW)
        for _ in range(2):
            gate.accept()
        table.give_back(gate.claim(self.NEW, task="lost"), slot="unclean")
        slots.begin_quiescing(self.NEW, "host/one")
        slots.end_quiescing(self.NEW, "host/one", "suspect")
        gate.claim(self.OLD, task="running")
        self.renamed(slots, [self.OLD])
        slot = slots.get(self.NEW)
        assert (slot.state, slot.task_id) == ("held", "running")

    def test_a_job_that_both_refused_is_refused_once(
        self, gate: Gate, table: JobTable, slots: Slots, database: Database
    ) -> None:
        slots.register("host/one", "host", [self.OLD, self.NEW], only=True)
        make_clean(slots, self.OLD, self.NEW)
        gate.accept()
        for key in (self.OLD, self.NEW):
            table.give_back(gate.claim(key), slot="clean", failure=Failure("webui-cannot", "x"), elsewhere=True)
        self.renamed(slots, [self.OLD])
        assert self.rows(database, "SELECT slot FROM refusals") == [(self.NEW,)]

    def test_where_both_have_a_catalogue_the_new_ones_stays(self, slots: Slots, catalogues: Catalogues) -> None:
        slots.register("host/one", "host", [self.OLD, self.NEW], only=True)
        catalogues.put(self.OLD, "old")
        catalogues.put(self.NEW, "new")
        self.renamed(slots, [self.OLD])
        assert catalogues.bodies([self.OLD, self.NEW]) == {self.NEW: "new"}


class TestHealth:
    def test_one_process_probes_once_in_a_while(self, slots: Slots, advance: Advance) -> None:
        assert slots.may_probe("gpu0")
        assert not slots.may_probe("gpu0")
        assert slots.may_probe("gpu1")
        advance(PROBE_SECONDS)
        assert slots.may_probe("gpu0")

    def test_many_processes_send_one_probe(self, slots: Slots) -> None:
        start = Barrier(6)

        def probe(_: int) -> bool:
            start.wait()
            return slots.may_probe("gpu0")

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(probe, range(6))) == 1

    def test_a_clock_that_was_set_back_silences_no_probe(self, slots: Slots, advance: Advance) -> None:
        assert slots.may_probe("gpu0")
        advance(-3600)
        assert slots.may_probe("gpu0")

    def test_a_configured_webui_that_answers_is_up(self, slots: Slots) -> None:
        assert not slots.any_up()
        slots.set_health("gpu1", "up")
        assert slots.any_up()
        slots.set_health("gpu1", "down")
        assert not slots.any_up()

    def test_one_that_nobody_configured_does_not_count(self, slots: Slots) -> None:
        slots.set_health("gpu0", "up")
        slots.register("host/two", "host", ["gpu1"], only=True)
        assert not slots.any_up()


class TestCatalogues:
    def test_a_changed_catalogue_has_a_new_version(self, slots: Slots, catalogues: Catalogues) -> None:
        assert catalogues.put("gpu0", "a")
        first = catalogues.current().versions
        assert not catalogues.put("gpu0", "a")
        assert catalogues.current().versions == first
        assert catalogues.put("gpu1", "a")
        assert catalogues.put("gpu0", "b")
        [(key, version), (other, _)] = catalogues.current().versions
        assert (key, other) == ("gpu0", "gpu1")
        assert version > first[0][1]
        assert catalogues.bodies(["gpu0", "gpu1", "gpu2"]) == {"gpu0": "b", "gpu1": "a"}

    def test_a_catalogue_of_no_configured_webui_is_not_shown(self, slots: Slots, catalogues: Catalogues) -> None:
        catalogues.put("gpu0", "a")
        slots.register("host/two", "host", ["gpu1"], only=True)
        assert catalogues.current().versions == ()

    def test_what_is_not_configured_any_more_is_dropped(self, slots: Slots, catalogues: Catalogues) -> None:
        catalogues.put("gpu0", "a")
        catalogues.put("gpu1", "a")
        assert catalogues.drop_unconfigured() == []
        slots.register("host/two", "host", ["gpu1"], only=True)
        assert catalogues.drop_unconfigured() == ["gpu0"]
        assert slots.get("gpu0") is None
        assert slots.get("gpu1") is not None
        assert catalogues.bodies(["gpu0", "gpu1"]) == {"gpu1": "a"}

    def test_a_slot_that_is_not_clean_stays_with_its_catalogue(
        self, gate: Gate, table: JobTable, slots: Slots, catalogues: Catalogues
    ) -> None:
        catalogues.put("gpu0", "a")
        gate.accept()
        table.give_back(gate.claim(), slot="unclean")
        slots.register("host/two", "host", ["gpu1"], only=True)
        assert catalogues.drop_unconfigured() == []
        assert slots.get("gpu0").state == "unclean"
        assert catalogues.bodies(["gpu0"]) == {"gpu0": "a"}
        slots.begin_quiescing("gpu0", "host/two")
        slots.end_quiescing("gpu0", "host/two", "clean")
        assert catalogues.drop_unconfigured() == ["gpu0"]
        assert catalogues.bodies(["gpu0"]) == {}

    def test_a_slot_that_was_never_used_is_dropped_though_its_webui_was_never_seen_idle(
        self, slots: Slots, catalogues: Catalogues
    ) -> None:
        slots.register("host/one", "host", ["mistyped"], only=True)
        slots.register("host/one", "host", ["gpu0", "gpu1"], only=True)
        assert catalogues.drop_unconfigured() == ["mistyped"]
        assert slots.get("mistyped") is None


class TestSightings:
    def test_only_a_configured_webui_that_is_up_counts(self, slots: Slots, catalogues: Catalogues) -> None:
        assert catalogues.sightings().seen_at == {}
        slots.set_health("gpu1", "up")
        assert catalogues.sightings().seen_at == {"gpu1": 0.0}
        before = catalogues.now()
        catalogues.put("gpu1", "a")
        catalogues.put("gpu0", "a")
        seen = catalogues.sightings()
        assert before <= seen.seen_at["gpu1"] <= seen.now
        assert list(seen.seen_at) == ["gpu1"]
        slots.set_health("gpu0", "up")
        assert list(catalogues.sightings().seen_at) == ["gpu0", "gpu1"]
        slots.register("host/two", "host", ["gpu0"], only=True)
        assert list(catalogues.sightings().seen_at) == ["gpu0"]

    def test_a_refresh_that_changes_nothing_counts_too_from_when_it_began(
        self, slots: Slots, catalogues: Catalogues, advance: Advance
    ) -> None:
        slots.set_health("gpu0", "up")
        catalogues.put("gpu0", "a")
        advance(60)
        began = catalogues.now()
        assert not catalogues.sightings().all_since(began - 10)
        assert not catalogues.put("gpu0", "a", began)
        assert catalogues.sightings().seen_at["gpu0"] == began

    def test_a_wanted_refresh_is_due_for_each_webui_until_it_was_asked(
        self, slots: Slots, catalogues: Catalogues
    ) -> None:
        for key in ("gpu0", "gpu1"):
            slots.set_health(key, "up")
            catalogues.put(key, "a")
        assert not catalogues.refresh_wanted("gpu0")
        wanted = catalogues.want_refresh()
        assert catalogues.refresh_wanted("gpu0")
        assert catalogues.refresh_wanted("gpu1")
        catalogues.put("gpu0", "a")
        assert not catalogues.refresh_wanted("gpu0")
        assert catalogues.refresh_wanted("gpu1")
        assert not catalogues.sightings().all_since(wanted)
        catalogues.put("gpu1", "b")
        assert catalogues.sightings().all_since(wanted)

    def test_a_refresh_that_began_before_it_was_wanted_does_not_count(
        self, slots: Slots, catalogues: Catalogues
    ) -> None:
        catalogues.put("gpu0", "a", catalogues.want_refresh() - 0.1)
        assert catalogues.refresh_wanted("gpu0")

    def test_many_who_want_a_refresh_at_once_write_once(
        self, slots: Slots, catalogues: Catalogues, advance: Advance
    ) -> None:
        first = catalogues.want_refresh()
        assert catalogues.want_refresh() == first
        advance(2)
        assert catalogues.want_refresh() > first

    def test_a_clock_that_was_set_back_hides_no_wanted_refresh(
        self, slots: Slots, catalogues: Catalogues, advance: Advance
    ) -> None:
        slots.set_health("gpu0", "up")
        catalogues.put("gpu0", "a")
        catalogues.want_refresh()
        advance(-3600)
        assert catalogues.sightings().seen_at == {"gpu0": 0.0}
        assert not catalogues.refresh_wanted("gpu0")
        catalogues.want_refresh()
        assert catalogues.refresh_wanted("gpu0")

    def test_a_catalogue_of_version_0_1_0_was_seen_at_an_unknown_time(
        self, slots: Slots, catalogues: Catalogues, database: Database
    ) -> None:
        slots.set_health("gpu0", "up")
        catalogues.put("gpu0", "a")
        with database.write() as connection:
            connection.execute(text("UPDATE catalogues SET seen_at = NULL"))
        assert catalogues.sightings().seen_at == {"gpu0": 0.0}
        catalogues.want_refresh()
        assert catalogues.refresh_wanted("gpu0")


class TestDefaultModel:
    def test_the_choice_is_kept_until_it_is_made_anew_or_forgotten(self, slots: Slots, catalogues: Catalogues) -> None:
        assert catalogues.default_model() is None
        catalogues.set_default_model("a")
        catalogues.set_default_model("b")
        assert catalogues.default_model() == "b"
        catalogues.set_default_model(None)
        assert catalogues.default_model() is None


def test_a_heartbeat_prolongs_what_the_worker_holds_and_nothing_else(
    gate: Gate, slots: Slots, advance: Advance, database: Database
) -> None:
    slots.register("host/two", "host", ["gpu1"], only=False)
    gate.accept()
    gate.accept()
    gate.claim("gpu0", owner="host/one", task="t1")
    gate.claim("gpu1", owner="host/two", task="t2")
    advance(9)
    slots.heartbeat("host/two")
    with database.read() as connection:
        for table in ("jobs", "slots"):
            rows = connection.execute(text(f"SELECT owner, lease_expires FROM {table} WHERE owner IS NOT NULL"))
            leases = {row.owner: row.lease_expires for row in rows}
            assert leases["host/two"] - leases["host/one"] > 8


class TestStates:
    def test_each_webui_is_told_with_what_runs_there(self, gate: Gate, slots: Slots) -> None:
        slots.set_health("gpu0", "up")
        gate.accept(requirements='{"model":"m"}')
        gate.claim("gpu0")
        first, second = slots.states()
        assert (first.key, first.state, first.health, first.running) == ("gpu0", "held", "up", '{"model":"m"}')
        assert (second.key, second.state, second.health, second.running) == ("gpu1", "clean", "unknown", None)
        assert second.since is None

    def test_the_time_of_the_last_change_stays_while_nothing_changes(
        self, slots: Slots, advance: Callable[[float], None]
    ) -> None:
        slots.set_health("gpu0", "up")
        advance(100.0)
        since = slots.states()[0].since
        slots.set_health("gpu0", "up")
        assert slots.states()[0].since == since
        slots.set_health("gpu0", "down")
        assert slots.states()[0].since == pytest.approx(since + 100.0, abs=5.0)

    def test_one_that_is_not_configured_is_not_told(self, slots: Slots) -> None:
        slots.register("host/one", "host", ["gpu1"], only=True)
        assert [state.key for state in slots.states()] == ["gpu1"]
