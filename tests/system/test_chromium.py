"""A real browser watches jobs with EventSource, directly and behind the shipped nginx: live, and over crashes of the server.

Needs the package ``chromium`` of Debian. Without it the tests are skipped; in continuous integration (``CI`` is set) they fail.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.system.chromium import CHROMIUM, Chromium, Page
from tests.system.harness import CHECKOUT, NGINX, UNFINISHED, Gateway, Nginx, Simulator, Stage, picture, until
from tests.system.sse import EventClient

#: Of an EventSource.
_OPEN, _CLOSED = 1, 2
#: Opens an EventSource and keeps all that it hears; ``at`` in milliseconds.
_WATCH = """
(url => {
  const source = new EventSource(url);
  const heard = [];
  const hear = (name, event) => heard.push({
    name, at: performance.now(), id: event.lastEventId || null, data: event.data ? JSON.parse(event.data) : null});
  for (const name of ["snapshot", "job", "progress", "gone", "end", "reset", "restart", "busy"])
    source.addEventListener(name, event => hear(name, event));
  source.onopen = event => hear("(open)", event);
  // Told by the browser when a stream breaks off or ends; it comes back unless the source is closed then.
  source.onerror = event => hear("(broken)", event);
  window.watches = window.watches || [];
  return window.watches.push({source, heard}) - 1;
})
"""


class Heard(NamedTuple):
    """An event as the page got it; ``id`` is that of the last event that had one."""

    name: str
    at: float
    id: str | None
    data: Any


class Watch:
    """An EventSource in a page."""

    def __init__(self, page: Page, path: str) -> None:
        self._page = page
        self._place = f"window.watches[{page.evaluate(f'{_WATCH}({json.dumps(path)})')}]"

    @property
    def state(self) -> int:
        """Its readyState."""
        state: int = self._page.evaluate(f"{self._place}.source.readyState")
        return state

    def heard(self, *names: str) -> list[Heard]:
        """All that it has heard so far, of these names if some are given."""
        heard = [Heard(**entry) for entry in self._page.evaluate(f"{self._place}.heard")]
        return [event for event in heard if not names or event.name in names]

    def until(self, *names: str, seconds: float = 30) -> Heard:
        """Wait for the first event of one of these names."""
        return until(lambda: self.heard(*names), f"the page hears {names}", seconds)[0]

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Each job as it was told last."""
        return {event.data["name"]: event.data for event in self.heard("job")}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """The browser of these tests."""
    if CHROMIUM is None:
        reason = "chromium is not installed (Debian's package chromium)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    stage = Stage(tmp_path_factory.mktemp("browser"))
    try:
        chromium = stage.add(Chromium("chromium", stage.folder))
        chromium.await_ready()
        yield chromium
    finally:
        stage.clear()


Entrance = Callable[[Gateway], Gateway | Nginx]


@pytest.fixture(params=["directly", "behind nginx"])
def entrance(request: pytest.FixtureRequest, stage: Stage) -> Entrance:
    """Where the browser reaches a gateway."""
    if request.param == "directly":
        return lambda gateway: gateway
    if NGINX is None:
        pytest.skip("nginx is not installed")
    return lambda gateway: stage.nginx(gateway, gateway.data)


def accepted(gateway: Gateway, **changes: object) -> dict[str, Any]:
    answer = gateway.post(prefer="respond-async", **changes)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def documented_script() -> str:
    """The script of docs/api.md, which follows the jobs of a user."""
    [script] = re.findall(
        r"^```js\n(.*?)^```$", (CHECKOUT / "docs/api.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return script


def told_once_and_in_order(heard: list[Heard]) -> bool:
    """Whether ids only rise, and the end of no job is told twice. A change without an id of its own shows the last one."""
    numbers = [tuple(map(int, event.id.split("-"))) for event in heard if event.id is not None]
    ends = [event.data["name"] for event in heard if event.name == "job" and event.data["status"] not in UNFINISHED]
    return numbers == sorted(numbers) and len(ends) == len(set(ends))


def test_progress_is_live_and_the_browser_stops_at_the_end(
    chromium: Chromium, stage: Stage, entrance: Entrance
) -> None:
    simulator = stage.simulator(seconds_per_image=3)
    gateway = stage.gateway([simulator])
    with chromium.page(f"{entrance(gateway).url}/docs") as page:
        of_user = Watch(page, "/jobs/user/events")
        of_user.until("snapshot")
        page.evaluate(documented_script().replace("/u1/", "/user/"))
        job = accepted(gateway, steps=20)
        of_job = Watch(page, f"{job['url']}/events")
        of_job.until("end")
        final = gateway.http.get(job["url"]).json()
        assert final["status"] == "succeeded"
        assert of_job.jobs() == {job["name"]: final}
        until(lambda: of_user.jobs() == {job["name"]: final}, "the user's stream tells of it too")
        until(lambda: page.evaluate("jobs") == {job["name"]: final}, "the page of the documents shows it")
        for watch in (of_user, of_job):
            assert told_once_and_in_order(watch.heard())
            told = [event.data["progress"] for event in watch.heard("progress") if 0 < event.data["progress"] < 1]
            assert told, "the picture took 3 s, and of a running job is told each second"
            assert told == sorted(set(told))
        # It comes back once, and is told by a 204 not to do so again.
        until(lambda: of_job.state == _CLOSED, "the source is closed", 10)
        assert [event.name for event in of_job.heard("(open)", "end", "(broken)")] == [
            *("(open)", "end"),
            *("(broken)", "(broken)"),
        ]
        assert of_user.state == _OPEN


def test_a_browser_comes_back_when_there_was_no_room(chromium: Chromium, stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1, SDG_MAX_STREAMS=1)
    with chromium.page(f"{gateway.url}/docs") as page:
        with EventClient(gateway.url, "/jobs/other/events") as other:
            other.upto("snapshot")
            watch = Watch(page, "/jobs/user/events")
            busy = watch.until("busy")
            assert busy.data["type"] == "no-free-stream"
        # There is room now.
        snapshot = watch.until("snapshot")
        assert 4900 < snapshot.at - busy.at < 9000
        job = gateway.succeeded(gateway.post())
        until(lambda: watch.jobs() == {job["name"]: job}, "the page is told of the job")


class Storm:
    """Jobs of one user, before, while and after their server is killed again and again."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.jobs: list[dict[str, Any]] = []
        self.deleted: set[str] = set()

    def add(self, count: int) -> None:
        """Ask for pictures."""
        self.jobs += [accepted(self.gateway, seed=str(len(self.jobs) + more)) for more in range(count)]

    def go_on(self) -> None:
        """Start the gateway again, and change jobs before a browser has come back."""
        self.gateway.restart()
        self.add(3)
        oldest = next(job for job in self.jobs if job["name"] not in self.deleted)
        self.gateway.finished(oldest["url"])
        assert self.gateway.http.delete(f"/delete/user/txt2img/{oldest['name']}").status_code == 200
        self.deleted.add(oldest["name"])

    def left(self) -> dict[str, dict[str, Any]]:
        """The jobs as the table has them when all have ended, by name."""
        for job in self.jobs:
            if job["name"] not in self.deleted:
                self.gateway.finished(job["url"])
        return {job["name"]: job for job in self.gateway.jobs()}


@pytest.mark.soak
def test_no_event_is_missed_over_crashes(chromium: Chromium, stage: Stage, slow: Simulator, entrance: Entrance) -> None:
    gateway = stage.gateway([slow], SDG_MAX_QUEUE_PER_USER=100)
    door = entrance(gateway)
    storm = Storm(gateway)
    with chromium.page(f"{door.url}/docs") as page:
        of_user = Watch(page, "/jobs/user/events")
        of_user.until("snapshot")
        storm.add(6)
        last = storm.jobs[-1]
        of_job = Watch(page, f"{last['url']}/events")
        for crash in range(3):
            newest = storm.jobs[-1]["name"]
            until(lambda newest=newest: newest in of_user.jobs(), "the page is told live")
            broken = len(of_user.heard("(broken)"))
            gateway.kill()
            # The stream breaks off; the first time, the page also finds nobody when it comes back.
            tries = 2 if crash == 0 else 1
            until(lambda seen=broken + tries: len(of_user.heard("(broken)")) >= seen, "the page has noticed")
            storm.go_on()
        left = storm.left()
        assert left.keys() | storm.deleted == {job["name"] for job in storm.jobs}
        assert {job["status"] for job in left.values()} == {"succeeded"}
        until(lambda: left.items() <= of_user.jobs().items(), "the page is told the end of every job")
        until(lambda: storm.deleted == {event.data["name"] for event in of_user.heard("gone")}, "and what was deleted")
        assert told_once_and_in_order(of_user.heard())
        # It went on where it was, each time.
        assert [event.name for event in of_user.heard("snapshot", "reset")] == ["snapshot"]
        away = {event.data["type"] for event in of_user.heard("busy")}
        assert away == (set() if door is gateway else {"gateway-unavailable"})
        until(lambda: of_job.state == _CLOSED, "the source of one job is closed")
        assert last["name"] not in storm.deleted
        assert of_job.jobs() == {last["name"]: left[last["name"]]}
        assert told_once_and_in_order(of_job.heard())


#: Fetches a URL as a page of another origin, with fields that a browser must ask for first.
_FETCH = """
(async (url, options) => {
  try {
    const answer = await fetch(url, options);
    const body = await answer.text();
    return {status: answer.status, length: body.length, body: body.slice(0, 2000), headers: Object.fromEntries(answer.headers)};
  } catch (error) {
    return {error: error.name};
  }
})
"""


def fetched(page: Page, url: str, method: str = "GET", body: object = None, **fields: str) -> dict[str, Any]:
    """What a page may read of an answer; ``error`` alone if the browser keeps it from the page."""
    options = {"method": method, "headers": {name.replace("_", "-"): value for name, value in fields.items()}}
    if body is not None:
        options |= {"body": json.dumps(body)}
    found: dict[str, Any] = page.evaluate(f"{_FETCH}({json.dumps(url)}, {json.dumps(options)})")
    return found


def test_a_page_of_another_origin_may_call_it_if_its_origin_is_listed(
    chromium: Chromium, stage: Stage, simulator: Simulator
) -> None:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    # The page is one of the simulator's: another port is another origin.
    gateway = stage.gateway([simulator], SDG_AUTH="none", SDG_CORS_ORIGINS=simulator.url, SDG_ACCEL="nginx")
    listed = {'# "https://app.example.com" $http_origin;': f'"{simulator.url}" $http_origin;'}
    nginx = stage.nginx(gateway, gateway.data, changes=listed)
    with chromium.page(f"{simulator.url}/sdapi/v1/samplers") as page:
        given = {"Content_Type": "application/json", "Authorization": "Bearer nobody", "Idempotency_Key": "once"}
        for door in (gateway.url, nginx.url):
            # It waits for its picture, so that its answer is one that was parked.
            posted = fetched(page, f"{door}/txt2img", "POST", picture(), **given)
            assert posted["status"] == 200, posted
            job = json.loads(posted["body"])
            later = fetched(
                page, f"{door}/txt2img", "POST", picture(), **{**given, "Idempotency_Key": door}, Prefer="respond-async"
            )
            assert (later["status"], later["headers"]["preference-applied"]) == (202, "respond-async")
            gateway.finished(later["headers"]["location"])
            shown = fetched(page, f"{door}{job['url']}")
            again = fetched(page, f"{door}{job['url']}", Prefer="wait=1", If_None_Match=shown["headers"]["etag"])
            assert (shown["status"], again["status"]) == (200, 304)
            refused = fetched(page, f"{door}/txt2img", "POST", picture(width=1), **given)
            assert (refused["status"], json.loads(refused["body"])["type"]) == (422, "validation-failed")
            assert fetched(page, f"{door}/jobs/user/nothing/x")["status"] == 404
            assert fetched(page, f"{door}/jobs/user/txt2img/{job['name']}/events")["status"] == 200
        # gunicorn refuses it before Flask has seen it.
        assert fetched(page, f"{gateway.url}/livez?{'x' * 6000}")["status"] == 414
        refusals_name_the_origin(gateway, simulator.url)
        image = f"{nginx.url}{job['images'][0]['url']}"
        assert fetched(page, image)["headers"]["etag"] == shown_etag(gateway, job)
        part = fetched(page, image, Range="bytes=0-9")
        assert (part["status"], part["length"], part["headers"]["content-range"][:10]) == (206, 10, "bytes 0-9/")
        gateway.kill()
        assert (away := fetched(page, f"{nginx.url}/livez"))["status"] == 502, away
        assert "event: busy" in fetched(page, f"{nginx.url}/jobs/user/events")["body"]
        gateway.restart()
        assert fetched(page, f"{gateway.url}/livez")["status"] == 200
    with chromium.page(f"{stage.simulator().url}/sdapi/v1/samplers") as page:
        assert fetched(page, f"{gateway.url}/livez") == {"error": "TypeError"}


def refusals_name_the_origin(gateway: Gateway, origin: str) -> None:
    """What gunicorn refuses may be read by the listed origin alone, whether the head can be parsed or not."""
    for head in ("GET /livez HTTP/1.1\r\n%s\r\n", "GET /livez HTTP/1.1\r\nHost: x\r\n%s : nonsense\r\n\r\n"):
        for sent, name in ((origin, origin), ("https://evil.example.com", None), (f"{origin}.evil.com", None)):
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
                connection.sendall((head % f"ORIGIN: {sent} \r\n").encode())
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (400, name)
                assert answer.headers["Vary"] == "Origin"


def shown_etag(gateway: Gateway, job: dict[str, Any]) -> str:
    """The entity tag of a job's picture, as the gateway gives it."""
    return str(gateway.http.request("HEAD", job["images"][0]["url"]).headers["ETag"])
