"""The contract of the job table, over SQLite and PostgreSQL alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.jobs.errors import (
    JobNotFound,
    KeyOfDeletedJob,
    KeyReused,
    QueueFull,
    UserQueueFull,
)
from app.jobs.losses import MAX_LOSSES
from app.jobs.model import Claim, Failure, IdempotencyKey, Job, Success
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.table import MAX_ATTEMPTS, Bounds, JobTable, NotReady, Serving
from app.runtime.failpoints import crash_at
from tests.inprocess import make_clean
from tests.jobs.conftest import EVERYTHING, Gate, success_of

FAILURE = Failure("webui-error", "It failed.")


class TestAccept:
    def test_an_accepted_job_is_queued_and_found_by_its_names(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept("用户")
        assert job.status == "queued"
        assert table.queries.get("用户", "txt2img", job.name) == job

    def test_a_full_queue_refuses_with_the_seconds_until_there_is_room(self, gate: Gate, table: JobTable) -> None:
        gate.accept("u1")
        with pytest.raises(QueueFull) as refused:
            gate.accept("u2", bounds=Bounds(1, 9))
        assert refused.value.retry_after >= 1
        assert table.queries.of_user("u2", None, 10, None) == []

    def test_retry_after_follows_the_measured_speed(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        slots.set_health("gpu0", "up")
        gate.accept("u1", cost=10.0)
        claim = gate.claim()
        table.answered(claim, 100.0, None, EVERYTHING)
        table.succeed(claim, success_of(claim))
        gate.accept("u1", cost=4.0)
        with pytest.raises(QueueFull) as refused:
            gate.accept("u2", bounds=Bounds(1, 9))
        assert refused.value.retry_after == pytest.approx(40.0)

    def test_retry_after_of_a_user_waits_for_his_first_job(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        slots.set_health("gpu0", "up")
        gate.accept("u0", cost=10.0)
        claim = gate.claim()
        table.answered(claim, 10.0, None, EVERYTHING)
        table.succeed(claim, success_of(claim))
        gate.accept("u2", cost=30.0)
        gate.accept("u1", cost=5.0)
        gate.accept("u1", cost=7.0)
        with pytest.raises(UserQueueFull) as refused:
            gate.accept("u1", bounds=Bounds(9, 2))
        assert refused.value.retry_after == pytest.approx(35.0)
        assert table.queries.seconds_until_room() == pytest.approx(30.0)

    def test_one_users_bound_leaves_others_alone(self, gate: Gate) -> None:
        gate.accept("u1")
        with pytest.raises(UserQueueFull):
            gate.accept("u1", bounds=Bounds(9, 1))
        gate.accept("u2", bounds=Bounds(9, 1))

    def test_finished_failed_and_deleted_jobs_make_room(self, gate: Gate, table: JobTable) -> None:
        bounds = Bounds(1, 1)
        for end in ("finish", "fail"):
            gate.accept("u1", bounds=bounds)
            claim = gate.claim()
            if end == "finish":
                assert gate.finish(claim)
            else:
                table.answered(claim, None, None, EVERYTHING)
                assert table.fail(claim, FAILURE) == "failed"
        gate.accept("u1", bounds=bounds)

    def test_two_processes_can_not_overfill_the_queue(self, gate: Gate) -> None:
        start = threading.Barrier(8)

        def accept(number: int) -> bool:
            start.wait()
            try:
                gate.accept(f"u{number}", bounds=Bounds(3, 9))
            except QueueFull:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(accept, range(8))) == 3


class TestIdempotency:
    KEY = IdempotencyKey("k1", "digest-1")

    def test_the_same_key_and_digest_answer_with_the_same_job(self, gate: Gate, table: JobTable) -> None:
        first, created = table.accept(gate.new(), Bounds(9, 9), self.KEY)
        again, created_again = table.accept(gate.new(), Bounds(9, 9), self.KEY)
        assert (created, created_again) == (True, False)
        assert again.seq == first.seq
        assert table.find_key("u1", self.KEY).seq == first.seq

    def test_another_digest_is_refused(self, gate: Gate, table: JobTable) -> None:
        gate.accept(key=self.KEY)
        with pytest.raises(KeyReused):
            gate.accept(key=IdempotencyKey("k1", "digest-2"))

    def test_keys_are_per_user(self, gate: Gate, table: JobTable) -> None:
        gate.accept("u1", key=self.KEY)
        assert table.find_key("u2", self.KEY) is None

    def test_a_refused_request_keeps_no_key(self, gate: Gate, table: JobTable) -> None:
        gate.accept("u1")
        with pytest.raises(QueueFull):
            gate.accept("u2", bounds=Bounds(1, 9), key=self.KEY)
        assert table.find_key("u2", self.KEY) is None

    def test_the_key_of_a_deleted_job_is_remembered_until_it_expires(
        self, gate: Gate, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        job = gate.accept(key=self.KEY)
        gate.run_next()
        table.deletion.delete("u1", "txt2img", job.name)
        with pytest.raises(KeyOfDeletedJob):
            table.find_key("u1", self.KEY)
        advance(24 * 3600 + 1)
        assert table.find_key("u1", self.KEY) is None
        assert gate.accept(key=self.KEY).seq != job.seq

    def test_two_at_once_make_one_job(self, gate: Gate, table: JobTable) -> None:
        start = threading.Barrier(6)

        def accept(_: int) -> int:
            start.wait()
            return gate.accept(key=self.KEY).seq

        with ThreadPoolExecutor(6) as pool:
            assert len(set(pool.map(accept, range(6)))) == 1
        assert len(table.queries.of_user("u1", None, 10, None)) == 1

    def test_expired_keys_are_forgotten(
        self, gate: Gate, table: JobTable, database: Database, advance: Callable[[float], None]
    ) -> None:
        gate.accept(key=self.KEY)
        table.deletion.forget_keys()
        advance(24 * 3600 + 1)
        table.deletion.forget_keys()
        with database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM idempotency")).scalar_one() == 0


class TestClaim:
    def test_a_claim_takes_job_and_slot_together(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        job = gate.accept()
        claim = gate.claim(task="t1")
        assert (claim.job.seq, claim.attempt, claim.job.status, claim.job.phase) == (
            job.seq,
            1,
            "running",
            "generating",
        )
        slot = slots.get("gpu0")
        assert (slot.state, slot.owner, slot.task_id) == ("held", "host/one", "t1")

    def test_a_held_slot_takes_no_second_job(self, gate: Gate) -> None:
        gate.accept()
        gate.accept()
        assert gate.claim() is not None
        assert gate.claim() is None
        assert gate.claim("gpu1") is not None

    def test_nothing_to_do_leaves_the_slot_clean(self, gate: Gate, slots: Slots) -> None:
        assert gate.claim() is None
        assert slots.get("gpu0").state == "clean"

    def test_a_claim_that_finds_nothing_passes_no_failpoint(self, sqlite: Database, tmp_path: Path) -> None:
        """However often a worker is woken for nothing, a job's failpoints keep their numbers."""
        watched = Database(str(sqlite.url), crash_at(str(tmp_path / "failpoints")))
        assert JobTable(watched).claim("gpu0", "host/one", "task", EVERYTHING, expected=True) is None
        assert (tmp_path / "failpoints").read_bytes() == b""
        watched.close()

    def test_only_what_the_webui_can_serve_is_claimed(self, gate: Gate, table: JobTable) -> None:
        first = gate.accept(requirements='{"model":"a"}')
        second = gate.accept(requirements='{"model":"b"}')
        numbers = {body: number for number, body in table.queries.requirements_after(0)}
        only_b = Serving(max(numbers.values()), frozenset({numbers['{"model":"a"}']}))
        assert gate.claim(serving=only_b).job.seq == second.seq
        assert gate.claim("gpu1", serving=only_b) is None
        assert gate.claim("gpu1").job.seq == first.seq
        assert set(table.queries.queued_requirements()) == set()

    def test_a_job_whose_requirements_were_never_judged_is_not_claimed(self, gate: Gate) -> None:
        gate.accept()
        assert gate.claim(serving=Serving(0, frozenset())) is None

    def test_many_workers_never_claim_one_job_twice(self, gate: Gate, slots: Slots) -> None:
        keys = [f"gpu{n}" for n in range(6)]
        slots.register("host/many", "host", keys, only=True)
        make_clean(slots, *keys[2:])
        for _ in range(4):
            gate.accept()
        start = threading.Barrier(6)

        def claim(key: str) -> int | None:
            start.wait()
            claimed = gate.claim(key, owner="host/many", task=key)
            return claimed.job.seq if claimed else None

        with ThreadPoolExecutor(6) as pool:
            claimed = [seq for seq in pool.map(claim, keys) if seq is not None]
        assert len(claimed) == len(set(claimed)) == 4

    def test_an_answer_frees_the_slot_and_claims_the_next_job_at_once(
        self, gate: Gate, table: JobTable, slots: Slots
    ) -> None:
        first, second = gate.accept(), gate.accept()
        claim = gate.claim(task="t1")
        following = table.answered(claim, 1.0, "t2", EVERYTHING)
        assert following.job.seq == second.seq
        assert slots.get("gpu0").task_id == "t2"
        assert table.queries.current(first.identity).phase == "storing"
        assert table.succeed(claim, success_of(claim)) == "succeeded"

    def test_nothing_changes_before_the_claimer_is_ready(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        first, second = gate.accept(), gate.accept()
        seen: list[int | None] = []

        def not_ready(claim: Claim | None) -> bool:
            seen.append(claim and claim.job.seq)
            return False

        with pytest.raises(NotReady):
            table.claim("gpu0", "host/one", "t0", EVERYTHING, ready=not_ready)
        assert (table.queries.current(first.identity).status, slots.get("gpu0").state) == ("queued", "clean")
        claim = gate.claim(task="t1")
        for following in ("t2", None):
            with pytest.raises(NotReady):
                table.answered(claim, 1.0, following, EVERYTHING, ready=not_ready)
            assert (slots.get("gpu0").state, slots.get("gpu0").task_id) == ("held", "t1")
            assert table.queries.current(first.identity).phase == "generating"
            assert table.queries.current(second.identity).status == "queued"
        assert seen == [first.seq, second.seq, None]

    def test_a_job_that_is_stored_does_not_hold_up_the_queue(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        claim = gate.claim()
        assert table.answered(claim, 1.0, "t2", EVERYTHING) is None
        gate.accept()
        assert gate.claim(task="t3") is not None


class TestFairness:
    def test_within_a_user_first_in_is_first_out(self, gate: Gate) -> None:
        jobs = [gate.accept(cost=float(5 - n)) for n in range(5)]
        assert [gate.run_next().seq for _ in jobs] == [job.seq for job in jobs]

    def test_a_newcomer_goes_before_the_flood_of_another(self, gate: Gate) -> None:
        for _ in range(20):
            gate.accept("flood")
        gate.run_next()
        newcomer = gate.accept("newcomer")
        assert newcomer.seq in {gate.run_next().seq, gate.run_next().seq}

    def test_costs_are_shared_not_counts(self, gate: Gate) -> None:
        """A asks for 8 units a job, B for 1: while both wait, B gets about 8 jobs for each of A's."""
        for _ in range(6):
            gate.accept("a", cost=8.0)
        for _ in range(40):
            gate.accept("b", cost=1.0)
        order = [gate.run_next().user_id for _ in range(36)]
        assert 6 <= order.count("b") / order.count("a") <= 10

    def test_a_job_given_back_keeps_its_place(self, gate: Gate, table: JobTable) -> None:
        first = gate.accept()
        gate.accept()
        table.give_back(gate.claim(), slot="clean")
        assert gate.run_next().seq == first.seq

    def test_idle_time_earns_no_credit(self, gate: Gate) -> None:
        gate.accept("old")
        for _ in range(10):
            gate.accept("busy")
        for _ in range(8):
            gate.run_next()
        for _ in range(3):
            gate.accept("old")
        # Had "old" kept its finish tag of long ago, all three would go first.
        order = [gate.run_next().user_id for _ in range(4)]
        assert order.count("busy") >= 1


class TestFinish:
    def test_a_success_shows_in_history(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        claim = gate.claim()
        assert gate.finish(claim)
        [found] = table.queries.history("u1", "txt2img", 10, None)
        assert (found.seq, found.status, found.simulated) == (job.seq, "succeeded", True)
        assert found.images[0]["filename"].startswith(job.name)
        assert table.queries.history("u1", "img2img", 10, None) == []

    def test_the_texts_of_a_webui_come_back_as_they_were(self, gate: Gate, table: JobTable) -> None:
        """Also what UTF-8, or a text of PostgreSQL, can't hold."""
        texts = ["灯塔 😀", "half \ud83d of a pair", "NUL \0", "1" * 30]
        gate.accept()
        claim = gate.claim()
        images = [{"filename": str(number), "infotext": text} for number, text in enumerate(texts)]
        success = Success(1, claim.job.args | {"cfg_scale": 7.0}, images, {"model": None}, simulated=True)
        assert table.succeed(claim, success) == "succeeded"
        [found] = table.queries.history("u1", "txt2img", 10, None)
        assert [image["infotext"] for image in found.images] == texts
        assert repr(found.args) == repr(success.args)
        assert table.queries.images("u1", "txt2img", found.name) == images

    def test_only_the_first_finish_wins_and_its_repetition_changes_nothing(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        claim = gate.claim()
        assert gate.finish(claim)
        ended = table.queries.current(claim.job.identity)
        # Asked for again, as when the answer to the first commit was lost: the job did end by this claim.
        assert table.succeed(claim, replace(success_of(claim), images=[])) == "succeeded"
        assert table.fail(claim, FAILURE) == "succeeded"
        assert table.queries.current(claim.job.identity) == ended
        assert table.give_back(claim, slot="clean") == "lost"
        with table.database.read() as connection:
            assert connection.execute(text("SELECT unfinished FROM clock")).scalar_one() == 0

    def test_a_lost_claim_can_not_finish(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        lost = gate.claim()
        table.losses.take_over("host", "host/two")
        assert table.succeed(lost, success_of(lost)) == "lost"
        assert table.answered(lost, 1.0, "t2", EVERYTHING) is None

    def test_the_loser_can_not_finish_the_winners_attempt(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        """The same process takes its own job again after a loss: the number of the claim tells the two apart."""
        gate.accept()
        old = gate.claim()
        table.give_back(old, slot="clean")
        new = gate.claim(task="again")
        assert (new.job.seq, new.owner, new.attempt) == (old.job.seq, old.owner, 2)
        assert table.succeed(old, success_of(old)) == "lost"
        assert gate.finish(new)

    def test_a_failure_is_kept_with_its_words(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        claim = gate.claim()
        assert table.fail(claim, FAILURE) == "failed"
        failed = table.queries.current(job.identity)
        assert (failed.status, failed.error_slug, failed.error_detail) == ("failed", "webui-error", "It failed.")
        assert failed.finished_at is not None


class TestGiveBack:
    def test_attempts_that_ended_at_the_webui_are_limited(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        outcomes = [table.give_back(gate.claim(), slot="clean", failure=FAILURE) for _ in range(MAX_ATTEMPTS)]
        assert outcomes == ["queued"] * (MAX_ATTEMPTS - 1) + ["failed"]
        assert table.queries.current(job.identity).error_slug == "webui-error"
        assert gate.claim() is None

    def test_a_connection_never_made_counts_nothing(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        for _ in range(MAX_ATTEMPTS * 3):
            assert table.give_back(gate.claim(), slot="clean") == "queued"
        kept = table.queries.current(job.identity)
        assert (kept.attempts, kept.claims) == (0, MAX_ATTEMPTS * 3)

    def test_after_out_of_memory_the_next_attempt_goes_one_by_one(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        table.give_back(gate.claim(), slot="clean", failure=FAILURE, one_by_one=True)
        table.give_back(gate.claim(), slot="clean")
        assert gate.claim().job.one_by_one

    def test_an_unclean_slot_takes_no_job_until_it_is_quiesced(self, gate: Gate, table: JobTable, slots: Slots) -> None:
        gate.accept()
        table.give_back(gate.claim(task="lost-task"), slot="unclean", failure=FAILURE)
        assert gate.claim() is None
        slot = slots.begin_quiescing("gpu0", "host/one")
        assert slot.task_id == "lost-task"
        assert slots.begin_quiescing("gpu0", "host/two") is None
        slots.end_quiescing("gpu0", "host/one", "suspect")
        assert (slots.get("gpu0").state, gate.claim()) == ("suspect", None)
        assert slots.begin_quiescing("gpu0", "host/two").task_id == "lost-task"
        slots.end_quiescing("gpu0", "host/two", "clean")
        assert gate.claim() is not None


class TestTakeOver:
    def test_the_next_process_of_a_host_frees_what_the_last_one_held(
        self, gate: Gate, table: JobTable, slots: Slots
    ) -> None:
        job = gate.accept()
        gate.claim(owner="host/one")
        assert [back.seq for back in table.losses.take_over("host", "host/two")] == [job.seq]
        kept = table.queries.current(job.identity)
        assert (kept.status, kept.losses, kept.attempts) == ("queued", 1, 0)
        assert slots.get("gpu0").state == "unclean"

    def test_another_host_is_left_alone_until_its_lease_runs_out(
        self, gate: Gate, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        job = gate.accept()
        gate.claim(owner="other/one")
        assert table.losses.take_over("host", "host/two") == []
        assert table.losses.reclaim("host/two") == []
        advance(11)
        assert [back.seq for back in table.losses.reclaim("host/two")] == [job.seq]

    def test_a_host_whose_name_begins_alike_is_another_host(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        gate.claim(owner="host2/one")
        assert table.losses.take_over("host", "host/two") == []

    def test_a_heartbeat_keeps_the_lease(
        self, gate: Gate, table: JobTable, slots: Slots, advance: Callable[[float], None]
    ) -> None:
        gate.accept()
        gate.claim(owner="host/one")
        advance(9)
        assert slots.heartbeat("host/one").known
        advance(9)
        assert table.losses.reclaim("host/two") == []

    def test_a_slot_that_its_owner_quiesces_by_now_is_not_passed_on_to_the_next_job(
        self, gate: Gate, table: JobTable, slots: Slots, advance: Callable[[float], None]
    ) -> None:
        """The worker slept past its lease, took the slot back to quiesce it, and only then heard of its lost job's answer."""
        gate.accept()
        lost = gate.claim(owner="host/one", task="lost")
        advance(11)
        table.losses.reclaim("host/two")
        assert slots.begin_quiescing("gpu0", "host/one").task_id == "lost"
        assert table.answered(lost, 1.0, "next", EVERYTHING) is None
        slot = slots.get("gpu0")
        assert (slot.state, slot.owner, slot.task_id) == ("quiescing", "host/one", "lost")
        assert table.queries.current(lost.job.identity).status == "queued"
        slots.end_quiescing("gpu0", "host/one", "clean")
        assert gate.claim() is not None

    def test_a_worker_that_the_table_forgot_is_told_so(self, slots: Slots) -> None:
        assert not slots.heartbeat("host/unknown").known

    def test_a_job_that_is_lost_again_and_again_fails(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        owners = ["host/a", "host/b"]
        for loss in range(MAX_LOSSES + 1):
            slot_free = table.database
            with slot_free.write() as connection:
                connection.execute(text("UPDATE slots SET state = 'clean'"))
            assert gate.claim(owner=owners[loss % 2]) is not None
            table.losses.take_over("host", owners[(loss + 1) % 2])
        failed = table.queries.current(job.identity)
        assert (failed.status, failed.error_slug, failed.losses) == ("failed", "worker-lost", MAX_LOSSES + 1)
        gate.accept(bounds=Bounds(1, 1))

    def test_the_last_lost_claim_of_a_failed_job_has_not_ended_it(self, gate: Gate, table: JobTable) -> None:
        """Its worker may still be alive, and has to remove its files."""
        gate.accept()
        with table.database.write() as connection:
            connection.execute(text("UPDATE jobs SET losses = :losses"), {"losses": MAX_LOSSES})
        lost = gate.claim(owner="host/one")
        [failed] = table.losses.take_over("host", "host/two")
        assert (failed.status, failed.error_slug) == ("failed", "worker-lost")
        assert table.succeed(lost, success_of(lost)) == "lost"
        assert table.fail(lost, Failure("webui-error", "Late.")) == "lost"

    def test_waiting_jobs_that_nobody_can_serve_fail(self, gate: Gate, table: JobTable) -> None:
        gone = gate.accept(requirements='{"model":"gone"}')
        kept = gate.accept(requirements='{"model":"kept"}')
        [number] = [number for number, body in table.queries.queued_requirements().items() if "gone" in body]
        assert table.losses.fail_queued(Failure("no-longer-available", "Gone."), requirement_sets=[number]) == [gone]
        assert table.queries.current(gone.identity).error_slug == "no-longer-available"
        assert table.queries.current(kept.identity).status == "queued"


class TestPages:
    def test_newest_first_is_the_order_of_acceptance(self, gate: Gate, table: JobTable) -> None:
        jobs = [gate.accept() for _ in range(5)]
        for _ in jobs:
            gate.run_next()
        pages, before = [], None
        while page := table.queries.history("u1", "txt2img", 2, before):
            pages.append([job.seq for job in page])
            before = page[-1].seq
        assert pages == [[jobs[4].seq, jobs[3].seq], [jobs[2].seq, jobs[1].seq], [jobs[0].seq]]

    def test_a_page_ends_with_the_first_job_that_is_not_wanted(self, gate: Gate, table: JobTable) -> None:
        newest_first = [gate.accept().seq for _ in range(20)][::-1]
        asked: list[int] = []

        def wanted(job: Job) -> bool:
            asked.append(job.seq)
            return job.seq != newest_first[2]

        assert [job.seq for job in table.queries.of_user("u1", None, 20, None, wanted)] == newest_first[:2]
        assert asked == newest_first[:3]
        assert [job.seq for job in table.queries.of_user("u1", None, 20, None)] == newest_first

    def test_a_cursor_survives_deletions(self, gate: Gate, table: JobTable) -> None:
        jobs = [gate.accept() for _ in range(4)]
        for _ in jobs:
            gate.run_next()
        table.deletion.delete("u1", "txt2img", jobs[2].name)
        assert [job.seq for job in table.queries.history("u1", "txt2img", 9, jobs[2].seq)] == [jobs[1].seq, jobs[0].seq]

    def test_jobs_of_a_user_in_any_state_or_in_one(self, gate: Gate, table: JobTable) -> None:
        done, waiting = gate.accept(), gate.accept(type_="img2img")
        gate.run_next()
        gate.accept("u2")
        assert [job.seq for job in table.queries.of_user("u1", None, 9, None)] == [waiting.seq, done.seq]
        assert [job.seq for job in table.queries.of_user("u1", "queued", 9, None)] == [waiting.seq]

    def test_all_succeeded_jobs_can_be_walked_through(self, gate: Gate, table: JobTable) -> None:
        seqs = [gate.accept().seq for _ in range(5)]
        for _ in seqs:
            gate.run_next()
        assert [job.seq for job in table.queries.succeeded(0, 3)] == seqs[:3]
        assert [job.seq for job in table.queries.succeeded(seqs[2], 3)] == seqs[3:]


class TestPlaces:
    def test_positions_are_those_of_the_real_order(self, gate: Gate, table: JobTable) -> None:
        a1, a2, b1 = gate.accept("a"), gate.accept("a"), gate.accept("b")
        positions = {job.seq: table.queries.place(job).position for job in (a1, a2, b1)}
        assert [gate.run_next().seq for _ in range(3)] == sorted(positions, key=positions.__getitem__)
        assert sorted(positions.values()) == [1, 2, 3]

    def test_eta_is_unknown_before_anything_was_measured(self, gate: Gate, table: JobTable) -> None:
        assert table.queries.place(gate.accept()).eta is None

    def test_eta_counts_what_runs_what_waits_before_and_the_job_itself(
        self, gate: Gate, table: JobTable, slots: Slots
    ) -> None:
        slots.set_health("gpu0", "up")
        gate.accept(cost=1.0)
        claim = gate.claim()
        table.answered(claim, 2.0, None, EVERYTHING)
        table.succeed(claim, success_of(claim))
        gate.accept(cost=10.0)
        running = gate.claim()
        table.report(running, 0.5, 5.0)
        gate.accept(cost=10.0)
        last = gate.accept(cost=10.0)
        assert table.queries.place(last).eta == pytest.approx(5.0 + 20.0 + 20.0, abs=1.0)
        assert table.queries.place(table.queries.current(running.job.identity)).eta == pytest.approx(5.0, abs=1.0)

    def test_eta_counts_the_costs_before_a_job_among_equals_too(
        self, gate: Gate, table: JobTable, slots: Slots
    ) -> None:
        """Three users come at once: their first jobs have one start tag, and the sequence decides."""
        slots.set_health("gpu0", "up")
        gate.accept("early", cost=1.0)
        claim = gate.claim()
        table.answered(claim, 1.0, None, EVERYTHING)
        table.succeed(claim, success_of(claim))
        jobs = [gate.accept(user, cost=cost) for user, cost in (("a", 1.5), ("b", 2.25), ("c", 4.0), ("a", 8.0))]
        assert len({job.start_tag for job in jobs[:3]}) == 1
        assert [table.queries.place(job).position for job in jobs] == [1, 2, 3, 4]
        assert [table.queries.place(job).eta for job in jobs] == [1.5, 3.75, 7.75, 15.75]

    def test_a_finished_job_has_no_place(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        gate.run_next()
        place = table.queries.place(table.queries.current(job.identity))
        assert (place.position, place.eta) == (None, None)

    def test_that_a_job_is_watched_is_remembered_for_the_worker(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        claim = gate.claim()
        assert table.queries.seconds_since_watched(claim) is None
        table.watched(claim.job)
        table.watched(claim.job)
        assert table.queries.seconds_since_watched(claim) == pytest.approx(0.0, abs=1.0)


class TestDelete:
    def test_a_deleted_job_is_gone_but_for_its_mark(self, gate: Gate, table: JobTable, database: Database) -> None:
        job = gate.accept()
        gate.run_next()
        assert table.deletion.delete("u1", "txt2img", job.name).seq == job.seq
        with pytest.raises(JobNotFound):
            table.queries.get("u1", "txt2img", job.name)
        assert table.revisions.latest([job.identity])[job.identity].status == "deleted"
        with database.read() as connection:
            row = connection.execute(text("SELECT args, images, webui FROM jobs")).one()
        assert tuple(row) == ("{}", None, None)

    def test_a_waiting_job_that_is_deleted_is_never_begun(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        assert table.deletion.delete("u1", "txt2img", job.name).status == "queued"
        assert gate.claim() is None
        assert gate.accept(bounds=Bounds(1, 1)).start_tag == job.start_tag

    def test_the_files_of_a_job_that_was_deleted_while_it_ran_are_removed_until_its_claim_has_ended(
        self, gate: Gate, table: JobTable, slots: Slots
    ) -> None:
        gate.accept()
        claim = gate.claim()
        assert claim is not None
        assert table.deletion.delete(*claim.job.identity).status == "running"
        assert slots.heartbeat("host/one").unwanted == {claim.task_id}
        [(deleted, whole)] = table.deletion.pending_unlink()
        assert (deleted.name, whole) == (claim.job.name, True)
        table.deletion.unlinked(deleted)
        assert len(table.deletion.pending_unlink()) == 1
        assert table.succeed(claim, success_of(claim)) == "deleted"
        assert slots.heartbeat("host/one").unwanted == set()
        table.deletion.unlinked(deleted)
        assert table.deletion.pending_unlink() == []

    def test_the_claim_of_a_deleted_job_is_taken_from_a_worker_that_is_gone(
        self, gate: Gate, table: JobTable, advance: Callable[[float], None]
    ) -> None:
        gate.accept()
        claim = gate.claim()
        assert claim is not None
        table.deletion.delete(*claim.job.identity)
        advance(11)
        assert table.losses.reclaim("host/two") == []
        [(deleted, _)] = table.deletion.pending_unlink()
        assert deleted.owner is None
        table.deletion.unlinked(deleted)
        assert table.deletion.pending_unlink() == []

    def test_a_pending_unlink_is_known_until_its_files_are_removed(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        gate.run_next()
        table.deletion.delete("u1", "txt2img", job.name)
        [(pending_unlink, whole)] = table.deletion.pending_unlink()
        assert (pending_unlink.name, whole) == (job.name, True)
        table.deletion.unlinked(pending_unlink)
        assert table.deletion.pending_unlink() == []

    def test_the_last_image_takes_the_record_with_it(self, gate: Gate, table: JobTable) -> None:
        job = gate.accept()
        claim = gate.claim()
        success = success_of(claim)
        second = {"filename": f"{job.name}-1-1.png", "seed": "2"}
        table.succeed(claim, type(success)(1, success.args, [*success.images, second], {}, simulated=False))
        _, whole = table.deletion.delete_image("u1", "txt2img", job.name, f"{job.name}-1-0.png")
        assert not whole
        assert [image["filename"] for image in table.queries.current(job.identity).images] == [second["filename"]]
        with pytest.raises(JobNotFound):
            table.deletion.delete_image("u1", "txt2img", job.name, f"{job.name}-1-0.png")
        _, whole = table.deletion.delete_image("u1", "txt2img", job.name, second["filename"])
        assert whole
        with pytest.raises(JobNotFound):
            table.queries.current(job.identity)

    def test_a_deleted_row_is_not_missing_for_reindex(self, gate: Gate, table: JobTable) -> None:
        new = gate.new()
        job, _ = table.accept(new, Bounds(9, 9))
        claim = gate.claim()
        gate.finish(claim)
        assert not table.restore(new, success_of(claim), 1, 1)
        table.deletion.delete("u1", "txt2img", job.name)
        assert not table.restore(new, success_of(claim), 1, 1)
        [(row, live)] = table.queries.rows_named(job.name, "txt2img")
        assert (row.status, live) == ("deleted", False)

    def test_a_missing_row_is_restored_and_never_claimed(self, gate: Gate, table: JobTable) -> None:
        gate.accept()
        claim = gate.claim()
        gate.finish(claim)
        new = gate.new("back")
        assert table.restore(new, success_of(claim), 5, 3)
        [restored] = table.queries.history("back", "txt2img", 9, None)
        assert (restored.name, restored.claims, restored.started_at) == (new.name, 3, 5)
        assert gate.claim() is None
