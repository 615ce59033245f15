"""PostgreSQL is restarted, frozen, cut off and silenced under load: requests are refused in time, and every job ends well."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import requests

from tests.postgresql import PostgresServer
from tests.proxy import TcpProxy
from tests.system.harness import Gateway, Simulator, Stage, picture
from tests.system.test_soak import clients, records, requests_of

#: What a request may take at most while the database does not answer, seconds.
_REFUSED_WITHIN = 20.0
_SILENT_SECONDS = 45.0
_USERS = 6
_JOBS = 60


@dataclass
class Site:
    """A gateway whose database can be troubled."""

    server: PostgresServer
    proxy: TcpProxy
    gateway: Gateway
    simulator: Simulator


@pytest.fixture
def site(postgres_server: PostgresServer, stage: Stage, simulator: Simulator) -> Iterator[Site]:
    proxy = TcpProxy(postgres_server.socket)
    url = f"postgresql://gateway@127.0.0.1:{proxy.port}/postgres"
    yield Site(postgres_server, proxy, stage.gateway([simulator], SDG_DATABASE_URL=url), simulator)
    proxy.close()


@dataclass
class Probe:
    """Asks the gateway again and again, as new clients do, and notes status and seconds of each answer."""

    gateway: Gateway
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> None:
        """Runs in a thread of its own."""
        while not self.over.wait(0.2):
            began = time.monotonic()
            try:
                response = self._request(number)
            except requests.RequestException as error:
                self.problems.append(f"no answer: {error}")
                continue
            seconds = time.monotonic() - began
            self.slowest = max(self.slowest, seconds)
            if seconds > _REFUSED_WITHIN:
                self.problems.append(f"{response.status_code} after {seconds:.1f} s")
            if response.status_code == 503:
                body = response.json()
                self.refused[body.get("type", body.get("status"))] += 1
                if "Retry-After" not in response.headers:
                    self.problems.append(f"no Retry-After: {response.text}")
            elif response.status_code not in (200, 422):
                self.problems.append(f"{response.status_code} {response.text}")

    def _request(self, number: int) -> requests.Response:
        if number == 0:
            return self.gateway.http.get("/jobs/nobody")
        # Refused for its name, after the database was asked for those that are known.
        return self.gateway.send("txt2img", picture(id="probe", sampler_name="nonesuch"), prefer="respond-async")


def storm(site: Site, trouble: Callable[[], None], jobs: int = _JOBS) -> Probe:
    """Trouble the database amid so many jobs; what new requests were answered meanwhile."""
    wanted = requests_of(jobs, _USERS)
    probe = Probe(site.gateway)
    probing = [threading.Thread(target=probe.ask, args=[number]) for number in range(2)]
    with clients(site.gateway, wanted, 300) as asked:
        while sum(future.done() for future in asked) < jobs // 6:
            time.sleep(0.05)
        for thread in probing:
            thread.start()
        trouble()
        answers = [future.result() for future in asked]
    probe.over.set()
    for thread in probing:
        thread.join()
    assert probe.problems == []
    found = records(site.gateway, _USERS)
    assert Counter(record["args"]["seed"] for record in found) == {request.body["seed"]: 1 for request in wanted}
    assert {record["name"] for record in found} == {answer["name"] for answer in answers}
    assert site.simulator.stats()["max_in_flight"] == 1
    verify = site.gateway.cli("records", "verify")
    assert (verify.returncode, verify.stdout) == (0, f"{jobs} records looked at, 0 problems\n"), verify.stderr
    site.gateway.await_ready()
    return probe


@pytest.mark.soak
@pytest.mark.timeout(600)
class TestTrouble:
    def test_a_restart(self, site: Site) -> None:
        def restart() -> None:
            site.server.stop()
            time.sleep(3)
            site.server.start()

        assert storm(site, restart).refused["database-unavailable"] > 0

    def test_every_process_of_the_server_frozen(self, site: Site) -> None:
        def freeze() -> None:
            site.server.freeze()
            time.sleep(_SILENT_SECONDS)
            site.server.thaw()

        assert storm(site, freeze).refused["database-unavailable"] > 0

    def test_connections_cut_again_and_again(self, site: Site) -> None:
        def cut() -> None:
            for _ in range(10):
                site.proxy.cut()
                time.sleep(0.5)

        storm(site, cut)

    def test_a_proxy_that_acknowledges_everything_and_forwards_nothing(self, site: Site) -> None:
        def silence() -> None:
            site.proxy.fall_silent()
            time.sleep(_SILENT_SECONDS)
            site.proxy.speak_again()

        assert storm(site, silence).refused["database-unavailable"] > 0


@pytest.mark.timeout(120)
def test_a_gateway_goes_on_after_its_database_was_silent_for_a_while(site: Site) -> None:
    def silence() -> None:
        site.proxy.fall_silent()
        time.sleep(8)
        site.proxy.speak_again()

    assert storm(site, silence, jobs=12).refused["database-unavailable"] > 0
