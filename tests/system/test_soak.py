"""Killed again and again, restarted and shut down under load: every request still ends in exactly one record, or as its client
has asked in the meantime.

The steady clients know nothing but their Idempotency-Keys: they repeat a request until they are told how it ended. The fickle ones
cancel and delete, with their own keys used again and again. Watchers follow the jobs of every user, and single jobs.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
import requests
from PIL import Image

from tests.postgresql import PostgresServer
from tests.system.harness import START_SECONDS, Gateway, Simulator, Stage, Worker, children, picture, until
from tests.system.watchers import Ended, JobWatcher, UserWatcher, Watcher, resumptions

_TWO_HOURS = 7200.0
#: What is told and tidied up after the last job has ended, at most.
_AFTERWARDS_SECONDS = 60.0
#: The last answer to a request with a key, by the status that its job has in the database.
_LAST_ANSWERS = {
    "succeeded": [(200, None)],
    "cancelled": [(409, "job-cancelled"), (409, "deadline-passed")],
    "deleted": [(404, "job-not-found"), (404, "key-of-deleted-job")],
}


@dataclass(frozen=True)
class Request:
    """One request and its key."""

    kind: str
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return f"key {self.body['seed']}".replace(" ", "-")


def _reference() -> str:
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode("ascii")


def requests_of(jobs: int, users: int) -> list[Request]:
    """Seeds from 1000 on, each user in turn; every fifth request has a reference image."""
    reference = _reference()
    made = []
    for number in range(jobs):
        body = picture(id=f"user {number % users}", seed=str(1000 + number))
        made.append(
            Request("img2img", body | {"init_images": reference}) if number % 5 == 4 else Request("txt2img", body)
        )
    return made


def insist(ask: Callable[[], requests.Response], deadline: float, what: str, *again: int) -> requests.Response:
    """Repeat a request until it has an answer, although the server is killed or restarted meanwhile.

    :param again: answers that are none yet, besides 503: for once nobody can take it.
    """
    answer = "no answer yet"
    while time.monotonic() < deadline:
        # Refused, reset or cut off in the middle of the answer: nobody knows what became of the request.
        with contextlib.suppress(requests.RequestException):
            response = ask()
            if response.status_code not in (503, *again):
                return response
            answer = f"{response.status_code} {response.text}"
        time.sleep(0.05)
    raise AssertionError(f"{what} has no end: {answer}")


def end_of(gateway: Gateway, request: Request, deadline: float) -> requests.Response:
    """Repeat a POST until its answer is the end of the job."""
    return insist(lambda: gateway.send(request.kind, request.body, key=request.key), deadline, request.key, 202)


def post_until_it_ends(gateway: Gateway, request: Request, deadline: float) -> dict[str, Any]:
    """Repeat a POST until the job is finished; it succeeds."""
    response = end_of(gateway, request, deadline)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    return job


@contextlib.contextmanager
def clients(gateway: Gateway, wanted: list[Request], seconds: float) -> Iterator[list[Future[dict[str, Any]]]]:
    """A client for each request, all at once."""
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(len(wanted)) as pool:
        yield [pool.submit(post_until_it_ends, gateway, request, deadline) for request in wanted]


@dataclass(frozen=True)
class Plan:
    """What a fickle client does with its job, so many seconds after it was accepted if the deed says no other time."""

    request: Request
    deed: str
    pause: float
    #: Whether another client sends the same request all the time.
    has_twin: bool
    is_watched: bool

    @property
    def user(self) -> str:
        return str(self.request.body["id"])


DEEDS = (
    "stays", "cancels", "cancels when it runs", "cancels all that wait", "sets Cancel-After",
    "deletes", "deletes when it runs", "deletes at the end",
)  # fmt: skip


def plans_of(jobs: int, users: int, seed: int) -> list[Plan]:
    """Each deed in turn, with everything else by the dice; seeds from 5000 on, and users of their own."""
    dice = random.Random(seed)
    reference = _reference()
    made = []
    for number in range(jobs):
        # Several pictures: an interrupt is only sent to what has more than half a second to go.
        deed = DEEDS[number % len(DEEDS)]
        pictures = 4 if deed.endswith("when it runs") else dice.choice((1, 3, 4))
        body = picture(id=f"fickle {number % users}", seed=str(5000 + number), batch_size=pictures)
        # Upscaled by calls that nothing may interrupt.
        enlarged = {"init_images": reference, "hr_upscaler": dice.choice(("", "Lanczos"))}
        request = Request("img2img", body | enlarged) if dice.random() < 0.3 else Request("txt2img", body)
        made.append(
            Plan(request, deed, dice.uniform(0, 3), has_twin=dice.random() < 0.5, is_watched=dice.random() < 0.8)
        )
    dice.shuffle(made)
    return made


@dataclass
class Fickle:
    """Clients that cancel and delete; what they were told is checked as it comes, and afterwards by :meth:`check`."""

    gateway: Gateway
    deadline: float
    watch: Callable[[str], object]
    #: Of each job by its name: how its last request with its key was answered.
    last_answers: dict[str, tuple[int, str | None]] = field(default_factory=dict)

    def live(self, plan: Plan) -> None:
        """One client, from its request to its last repetition of it."""
        with ThreadPoolExecutor(1) as pool:
            twin = pool.submit(end_of, self.gateway, plan.request, self.deadline) if plan.has_twin else None
            job = self._accepted(plan)
            if plan.is_watched:
                self.watch(job["url"])
            self._await(plan, job)
            self._do(plan, job)
            # With the same key, also after a cancel or a delete.
            end = _answer(end_of(self.gateway, plan.request, self.deadline))
            ends = [end] if twin is None else [end, _answer(twin.result())]
        assert set(ends) <= {answer for answers in _LAST_ANSWERS.values() for answer in answers}, (plan, ends)
        self.last_answers[job["name"]] = end

    def _accepted(self, plan: Plan) -> dict[str, Any]:
        """Post until it is known which job it is, however far that is."""
        headers = {"Idempotency-Key": plan.request.key, "Prefer": "respond-async"}
        if plan.deed == "sets Cancel-After":
            headers["Cancel-After"] = "5s"
        body = plan.request.body

        def ask() -> requests.Response:
            return self.gateway.http.request("POST", f"/{plan.request.kind}", json=body, headers=headers)

        answer = insist(ask, self.deadline, f"{plan}")
        assert answer.status_code in (200, 202, 409), (plan, answer.text)
        url = answer.json()["url"]
        return {"url": url, "name": url.rpartition("/")[2]}

    def _await(self, plan: Plan, job: dict[str, Any]) -> None:
        """Wait for the moment of the deed."""
        if plan.deed.endswith("when it runs"):
            while self._insist(plan, "GET", job["url"]).json()["status"] == "queued":
                time.sleep(0.05)
        elif plan.deed.endswith("at the end"):
            end_of(self.gateway, plan.request, self.deadline)
        else:
            time.sleep(plan.pause)

    def _do(self, plan: Plan, job: dict[str, Any]) -> None:
        user = quote(plan.user)
        if plan.deed in ("cancels", "cancels when it runs"):
            answer = self._insist(plan, "POST", f"{job['url']}/cancel")
            assert answer.status_code == 200, (plan, answer.text)
            told = answer.json()
            assert told["cancel_requested"] or told["status"] == "succeeded", (plan, told)
        elif plan.deed == "cancels all that wait":
            answer = self._insist(plan, "POST", f"/jobs/{user}/cancel?status=queued")
            assert answer.status_code == 200, (plan, answer.text)
        elif plan.deed.startswith("deletes"):
            # 404: the answer was lost, and not what it would have told.
            answer = self._insist(plan, "DELETE", f"/delete/{user}/{plan.request.kind}/{job['name']}")
            assert answer.status_code in (200, 404), (plan, answer.text)

    def _insist(self, plan: Plan, method: str, path: str) -> requests.Response:
        return insist(lambda: self.gateway.http.request(method, path), self.deadline, f"{plan}")

    def check(self, ended: dict[str, Ended]) -> None:
        """The last answers fit how the jobs stand in the database."""
        wrong = [
            (name, answer, ended[name])
            for name, answer in self.last_answers.items()
            if answer not in _LAST_ANSWERS[ended[name].status]
        ]
        assert wrong == []


def _answer(response: requests.Response) -> tuple[int, str | None]:
    return response.status_code, None if response.ok else response.json()["type"]


class Killer:
    """Ends a process of a server at a time, without warning; the same choice each run, as far as its own dice go.

    :param workers: the external workers, if the server has none of its own.
    """

    def __init__(self, gateway: Gateway, seed: int, workers: Sequence[Worker] = ()) -> None:
        self.gateway = gateway
        self.kills: Counter[str] = Counter()
        self._workers = workers
        self._dice = random.Random(seed)

    def strike(self) -> None:
        """Kill a web process, the one that runs the worker, gunicorn's master alone, or everything; what is gone then is started
        again.
        """
        victim = self._dice.choice(("web process", "worker", "master", "everything"))
        if victim == "master":
            self.gateway.kill_master()
            self._start_again()
        elif victim == "everything":
            self.gateway.kill()
            self._start_again()
        elif victim == "worker" and self._workers:
            worker = self._dice.choice(self._workers)
            worker.kill()
            worker.launch()
        else:
            processes = children(self.gateway.running.pid)
            elected = self._elected()
            others = [pid for pid in processes if pid != elected]
            candidates = [elected] if victim == "worker" and elected in processes else others
            if not candidates:
                # Both are being started again just now.
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._dice.choice(candidates), signal.SIGKILL)
        self.kills[victim] += 1

    def _start_again(self) -> None:
        # Who listens may be a process whose master is dead; the new server has the port when it has processes.
        self.gateway.launch()
        until(lambda: children(self.gateway.running.pid), "the server is back", START_SECONDS)

    def _elected(self) -> int | None:
        if self._workers:
            return None
        with contextlib.suppress(sqlite3.OperationalError):
            return self.gateway.worker_pid()
        return None


def rows(gateway: Gateway, statement: str) -> list[Any]:
    """The rows that a read-only statement finds in the gateway's database."""
    url = gateway.environ["SDG_DATABASE_URL"]
    if url.startswith("postgresql"):
        psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
        with contextlib.closing(psycopg.connect(url)) as connection:
            found: list[Any] = connection.execute(statement).fetchall()
            return found
    with contextlib.closing(sqlite3.connect(f"file:{gateway.database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def records(gateway: Gateway, users: int, kind_of_user: str = "user") -> list[dict[str, Any]]:
    """All records of all users, as their histories show them."""
    return [
        record
        for user in range(users)
        for kind in ("txt2img", "img2img")
        for record in gateway.history(f"{kind_of_user} {user}", kind)
    ]


def pictures(gateway: Gateway, found: list[dict[str, Any]]) -> dict[str, bytes]:
    """The bytes of every image by its seed."""
    return {
        image["seed"]: content
        for record in found
        for image, content in zip(record["images"], gateway.images(record), strict=True)
    }


def files_of(*found: dict[str, Any]) -> set[str]:
    """The names of the files that these records should have."""
    images = {image["filename"] for record in found for image in record["images"]}
    documents = {filename.rpartition("-")[0] + ".json" for filename in images}
    return images | documents | {record["init_image"]["filename"] for record in found if record["init_image"]}


def check_files(gateway: Gateway, found: list[dict[str, Any]], cancelled: Iterable[dict[str, Any]] = ()) -> None:
    """No stray file is left by the sweep, and everything opens; cancelled jobs keep their reference images."""
    then = time.time() - _TWO_HOURS
    for path in gateway.data.rglob("*"):
        if path.is_file():
            # A reference image of a request that was never accepted goes when it is old.
            os.utime(path, (then, then))
    assert gateway.cli("records", "sweep").returncode == 0
    assert gateway.files() == files_of(*found, *cancelled)
    assert gateway.cli("records", "sweep").stdout == "0 stray files removed\n"
    verify = gateway.cli("records", "verify")
    assert (verify.returncode, verify.stdout) == (0, f"{len(found)} records looked at, 0 problems\n")


def ended_jobs(gateway: Gateway) -> dict[str, Ended]:
    """All jobs by their names, deleted ones too: their keys keep their rows."""
    return {row[0]: Ended(*row) for row in rows(gateway, "SELECT name, user_id, status, rev FROM jobs")}


@contextlib.contextmanager
def watching(gateway: Gateway, users: Iterable[str], seed: int) -> Iterator[tuple[list[UserWatcher], JobWatchers]]:
    """Two watchers of each user, one as patient as a browser, and those of single jobs."""
    dice = random.Random(seed)
    with contextlib.ExitStack() as open_:
        of_users = []
        for user in users:
            path = f"/jobs/{quote(user)}/events"
            restless = UserWatcher(gateway.url, path, patience=0.05, dice=random.Random(dice.random()))
            of_users += [UserWatcher(gateway.url, path), restless]
        for watcher in of_users:
            open_.enter_context(watcher)
        until(lambda: all(watcher.told for watcher in of_users), "every watcher has begun", START_SECONDS)
        yield of_users, JobWatchers(gateway, open_, dice)


class JobWatchers:
    """The watchers of single jobs, opened as their clients learn of them."""

    def __init__(self, gateway: Gateway, open_: contextlib.ExitStack, dice: random.Random) -> None:
        self._gateway = gateway
        self._open = open_
        self._dice = dice
        self._lock = threading.Lock()
        self.all: list[JobWatcher] = []

    def add(self, url: str) -> None:
        """Watch the job with this address."""
        with self._lock:
            patience = self._dice.choice((0.05, 1.0))
            dice = random.Random(self._dice.random())
            watcher = JobWatcher(self._gateway.url, f"{url}/events", patience=patience, dice=dice)
            self.all.append(self._open.enter_context(watcher))


def afterwards(problems: Callable[[], list[Any]]) -> None:
    """Wait until nothing is wrong any more; fails with what still is."""
    deadline = time.monotonic() + _AFTERWARDS_SECONDS
    while (found := problems()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == []


def check_watchers(of_users: Iterable[UserWatcher], of_jobs: Iterable[JobWatcher], ended: dict[str, Ended]) -> None:
    """Every watcher was told all that it must be told, whatever was killed meanwhile, and no contradiction."""

    def missed() -> list[str]:
        found = [
            text
            for watcher in of_users
            for text in watcher.missed(
                job for job in ended.values() if f"/jobs/{quote(job.user)}/events" == watcher.path
            )
        ]
        return found + [text for watcher in of_jobs for text in watcher.missed(ended[watcher.name])]

    afterwards(missed)
    every: list[Watcher] = [*of_users, *of_jobs]
    assert [text for watcher in every for text in watcher.contradictions()] == []
    assert resumptions(every)["resumed"] > 0


def check_interrupts(gateway: Gateway, simulators: Sequence[Simulator], kills: int) -> None:
    """Interrupts hit tasks of jobs that are to end, and what dead workers left, but nothing that became a record."""
    tasks = dict(rows(gateway, "SELECT task_id, status FROM jobs WHERE task_id IS NOT NULL"))
    hit = {task for simulator in simulators for task in simulator.stats()["interrupted"]} - {None}
    assert {tasks[task] for task in hit & set(tasks)} <= {"cancelled", "deleted"}
    assert len(hit - set(tasks)) <= kills


def check_database(gateway: Gateway) -> None:
    """Nothing is held, and both counts of unfinished jobs are right."""
    afterwards(lambda: rows(gateway, "SELECT name FROM jobs WHERE status IN ('queued', 'running')"))
    afterwards(lambda: rows(gateway, "SELECT name, owner FROM jobs WHERE owner IS NOT NULL"))
    afterwards(lambda: rows(gateway, "SELECT key, state FROM slots WHERE state <> 'clean' OR owner IS NOT NULL"))
    assert rows(gateway, "SELECT unfinished FROM clock") == [(0,)]
    assert rows(gateway, "SELECT user_id, unfinished FROM users WHERE unfinished <> 0") == []


def check_nothing_is_left(gateway: Gateway, ended: dict[str, Ended]) -> None:
    """Of deleted jobs there is no file, and of cancelled ones only the reference image, without any sweep."""

    def left() -> list[str]:
        status = {name: job.status for name, job in ended.items()}
        found = [(file, status.get(file.lstrip(".")[:27])) for file in gateway.files()]
        return [
            file for file, its in found if its == "deleted" or (its == "cancelled" and not file.endswith("-init.png"))
        ]

    afterwards(left)


def check_logs(stage: Stage) -> None:
    """No job is said to have ended twice."""
    ends = Counter(
        line.partition(" job=")[2].split()[0]
        for _, text in stage.logs()
        for line in text.splitlines()
        if any(f" event={event} " in line for event in ("stored", "failed", "cancelled"))
    )
    assert [name for name, count in ends.items() if count > 1] == []


@dataclass(frozen=True)
class Form:
    """The size of a soak: jobs and users of steady and of fickle clients, seconds a picture, seconds between two kills, kills at
    most, seconds in all; and what all dice begin with.
    """

    jobs: int
    users: int
    fickle_jobs: int
    fickle_users: int
    picture_seconds: float
    pause: float
    most_kills: int
    seconds: float
    seed: int = 20261122

    @property
    def all_users(self) -> list[str]:
        return [f"user {number}" for number in range(self.users)] + [
            f"fickle {number}" for number in range(self.fickle_users)
        ]


SHORT = Form(8, 2, 8, 2, picture_seconds=0.3, pause=0.7, most_kills=6, seconds=80)
FULL = Form(40, 8, 40, 6, picture_seconds=0.3, pause=1.0, most_kills=10_000, seconds=240)
#: A lease has to end before another external worker takes over what a dead one held.
TWO_WORKERS = Form(24, 4, 40, 4, picture_seconds=0.8, pause=1.2, most_kills=10_000, seconds=240)


@dataclass
class Site:
    """A gateway with its WebUIs, and who ends its processes."""

    gateway: Gateway
    simulators: list[Simulator]
    killer: Killer


def soak(stage: Stage, house: Gateway, site: Site, form: Form) -> str:
    """Ask for everything at once and kill until everything is there; what happened, for people to read."""
    wanted, plans = requests_of(form.jobs, form.users), plans_of(form.fickle_jobs, form.fickle_users, form.seed)
    # Undisturbed, on another server: a simulated picture depends on the request and its seed alone.
    expected: dict[str, bytes] = {}
    with clients(house, wanted, form.seconds) as undisturbed:
        for future in undisturbed:
            expected |= pictures(house, [future.result()])

    gateway, killer = site.gateway, site.killer
    over = threading.Event()
    with watching(gateway, form.all_users, form.seed) as (of_users, of_jobs), ThreadPoolExecutor(len(plans)) as pool:
        fickle = Fickle(gateway, time.monotonic() + form.seconds, of_jobs.add)
        with clients(gateway, wanted, form.seconds) as steady:
            asked: list[Future[Any]] = [*steady, *(pool.submit(fickle.live, plan) for plan in plans)]
            while not all(future.done() for future in asked) and killer.kills.total() < form.most_kills:
                over.wait(form.pause)
                killer.strike()
            for future in asked:
                future.result()
            answers = [future.result() for future in steady]
        # The last blow may have hit after the last answer.
        gateway.await_ready()
        check_database(gateway)
        ended = ended_jobs(gateway)
        check_watchers(of_users, of_jobs.all, ended)

    check_steady(gateway, form, wanted, answers, expected)
    fickle.check(ended)
    assert len(ended) == form.jobs + form.fickle_jobs
    assert rows(gateway, "SELECT sum(attempts) FROM jobs") == [(0,)]
    kills, stats = killer.kills.total(), [simulator.stats() for simulator in site.simulators]
    assert {each["max_in_flight"] for each in stats} == {1}
    records_made = sum(job.status == "succeeded" for job in ended.values())
    assert records_made <= sum(each["generations"] for each in stats) <= len(ended) + 3 * kills, killer.kills
    check_interrupts(gateway, site.simulators, kills)
    check_logs(stage)
    check_nothing_is_left(gateway, ended)
    cancelled = [job for user in form.all_users for job in gateway.jobs(user) if job["status"] == "cancelled"]
    found = records(gateway, form.users) + records(gateway, form.fickle_users, "fickle")
    assert {record["name"] for record in found} == {job.name for job in ended.values() if job.status == "succeeded"}
    check_files(gateway, found, cancelled)
    told = resumptions([*of_users, *of_jobs.all]) + Counter(interrupted=sum(len(each["interrupted"]) for each in stats))
    counts = (Counter(job.status for job in ended.values()), killer.kills, told)
    return ", ".join(f"{count} {what}" for counter in counts for what, count in counter.items())


def check_steady(
    gateway: Gateway, form: Form, wanted: list[Request], answers: list[dict[str, Any]], expected: dict[str, bytes]
) -> None:
    """The steady clients have their pictures, each once."""
    found = records(gateway, form.users)
    assert len(found) == form.jobs
    assert Counter(record["args"]["seed"] for record in found) == {request.body["seed"]: 1 for request in wanted}
    assert {record["name"] for record in found} == {answer["name"] for answer in answers}
    assert pictures(gateway, found) == expected


@pytest.fixture
def embedded(stage: Stage) -> Callable[[Form], Site]:
    """A gateway that runs its worker itself."""

    def make(form: Form) -> Site:
        simulator = stage.simulator(seconds_per_image=form.picture_seconds)
        # A place for the watchers of users in each process, and not for all the others.
        gateway = stage.gateway([simulator], SDG_MAX_STREAMS=2 * len(form.all_users) + form.fickle_jobs // 4)
        return Site(gateway, [simulator], Killer(gateway, form.seed))

    return make


@pytest.mark.timeout(120)
def test_kill_9_of_anything_at_any_moment_loses_no_job_and_makes_none_twice(
    stage: Stage, house: Gateway, embedded: Callable[[Form], Site]
) -> None:
    soak(stage, house, embedded(SHORT), SHORT)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_forty_jobs_of_eight_users_outlive_a_kill_9_each_second(
    stage: Stage, house: Gateway, embedded: Callable[[Form], Site], record_property: Callable[[str, str], None]
) -> None:
    record_property("shown", soak(stage, house, embedded(FULL), FULL))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_workers_at_postgresql_outlive_kill_9(
    stage: Stage, house: Gateway, postgres_server: PostgresServer, record_property: Callable[[str, str], None]
) -> None:
    simulators = [stage.simulator(seconds_per_image=TWO_WORKERS.picture_seconds) for _ in range(2)]
    gateway = stage.gateway(simulators, ready=False, SDG_WORKER="external", SDG_DATABASE_URL=postgres_server.url)
    workers = [stage.worker(gateway) for _ in range(2)]
    gateway.await_ready()
    site = Site(gateway, simulators, Killer(gateway, TWO_WORKERS.seed, workers))
    record_property("shown", soak(stage, house, site, TWO_WORKERS))


@pytest.mark.soak
class TestRestarts:
    """Restarts as ``systemctl restart`` makes them: SIGTERM, wait for the end, start."""

    JOBS = 8

    def _restarted_under_load(
        self, stage: Stage, simulator: Simulator, restarts: int, **settings: Any
    ) -> tuple[Gateway, list[dict[str, Any]]]:
        gateway = stage.gateway([simulator], **settings)
        with clients(gateway, requests_of(self.JOBS, 4), 80) as asked:
            for _ in range(restarts):
                done = sum(future.done() for future in asked)
                self._await(lambda done=done: sum(future.done() for future in asked) > done)
                assert gateway.stop() == 0
                assert gateway.alive is False
                gateway.restart()
            return gateway, [future.result() for future in asked]

    @staticmethod
    def _await(condition: Callable[[], bool]) -> None:
        until(condition, "another job is finished")

    def test_a_restart_under_load_loses_nothing_and_makes_nothing_twice(self, stage: Stage, slow: Simulator) -> None:
        gateway, answers = self._restarted_under_load(stage, slow, restarts=2)
        assert len({answer["name"] for answer in answers}) == self.JOBS
        # What ran was finished before each end: one claim a job, and no attempt or loss was counted.
        assert rows(gateway, "SELECT count(*), max(claims), sum(attempts), sum(losses) FROM jobs") == [
            (self.JOBS, 1, 0, 0)
        ]
        assert slow.stats()["generations"] == self.JOBS
        assert slow.stats()["interrupts"] == 0
        assert gateway.files() == files_of(*records(gateway, 4))

    @pytest.mark.soak
    def test_a_restart_that_cannot_wait_gives_the_running_job_back_uncounted(
        self, stage: Stage, slow: Simulator
    ) -> None:
        gateway, answers = self._restarted_under_load(stage, slow, restarts=2, SDG_DRAIN_TIMEOUT=0)
        assert len({answer["name"] for answer in answers}) == self.JOBS
        [(jobs, claims, attempts, losses)] = rows(
            gateway, "SELECT count(*), sum(claims), sum(attempts), sum(losses) FROM jobs"
        )
        assert (jobs, attempts, losses) == (self.JOBS, 0, 0)
        assert self.JOBS <= slow.stats()["generations"] <= claims <= self.JOBS + 2
        assert slow.stats()["max_in_flight"] == 1
        assert gateway.files() == files_of(*records(gateway, 4))
