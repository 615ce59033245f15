"""The offering (the catalogues of all configured WebUIs together), and the model of requests that name none."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Barrier, Event

import pytest
from sqlalchemy import text

from app.gateway import offering as offering_module
from app.gateway.offering import NoCatalogue, Offering
from app.jobs.catalogues import Catalogues
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.webui.catalogue import Catalogue
from app.webui.models import Model, told_apart
from app.webui.presets import Preset, Presets


def catalogue(*models: str, loaded: str | None = None, samplers: tuple[str, ...] = ("Euler",)) -> Catalogue:
    known = told_apart(Model(f"{name}.safetensors", f"{name}.safetensors", name, name) for name in models)
    return Catalogue(samplers=samplers, models=known, loaded_model=loaded and f"{loaded}.safetensors")


class Host:
    """Slots of two WebUIs and an Offering over them."""

    def __init__(self, database: Database, default_model: str = "") -> None:
        self.slots = Slots(database)
        self.slots.register("host/one", "host", ["gpu0", "gpu1"], only=True)
        self.catalogues = Catalogues(database)
        self.offering = Offering(self.slots, self.catalogues, Presets({"oil": Preset(sampler="Euler")}), default_model)

    def sees(self, key: str, seen: Catalogue) -> None:
        self.catalogues.put(key, seen.to_json())
        self.offering.update_default_model()


@pytest.fixture
def host(sqlite: Database) -> Host:
    return Host(sqlite)


class TestCatalogues:
    def test_none_was_ever_seen(self, host: Host) -> None:
        assert host.offering.catalogues() == {}
        with pytest.raises(NoCatalogue):
            host.offering.require_catalogues()
        assert host.offering.catalogues_and_default_model()[1] is None
        assert host.offering.options()["models"] == []

    def test_a_change_shows_at_once_and_nothing_is_read_twice(self, host: Host) -> None:
        host.sees("gpu0", catalogue("a"))
        first = host.offering.catalogues()
        assert first["gpu0"].models[0].model_name == "a"
        assert host.offering.catalogues() is first
        host.sees("gpu0", catalogue("b"))
        assert host.offering.catalogues()["gpu0"].models[0].model_name == "b"

    def test_all_webuis_count_in_the_order_of_the_setting(self, host: Host) -> None:
        host.sees("gpu1", catalogue("b", "c"))
        host.sees("gpu0", catalogue("a", "b"))
        assert host.offering.options()["models"] == ["a", "b", "c"]
        assert host.offering.options()["styles"] == ["oil"]

    def test_one_that_is_configured_no_more_does_not(self, host: Host) -> None:
        host.sees("gpu0", catalogue("a"))
        host.slots.register("host/two", "host", ["gpu1"], only=True)
        assert host.offering.catalogues() == {}


class TestDefaultModel:
    def test_it_is_the_first_model_seen_loaded(self, host: Host) -> None:
        host.sees("gpu0", catalogue("a", "b"))
        assert host.offering.catalogues_and_default_model()[1] is None
        host.sees("gpu1", catalogue("b", "c", loaded="c"))
        assert host.offering.catalogues_and_default_model()[1] == "c"

    def test_it_does_not_wander_with_what_is_loaded(self, host: Host) -> None:
        host.sees("gpu0", catalogue("a", "b", loaded="a"))
        host.sees("gpu0", catalogue("a", "b", loaded="b"))
        assert host.offering.catalogues_and_default_model()[1] == "a"
        assert host.catalogues.default_model() == "a"

    def test_it_is_chosen_again_when_no_webui_has_it(self, host: Host) -> None:
        host.sees("gpu0", catalogue("a", loaded="a"))
        host.sees("gpu0", catalogue("b", loaded="b"))
        assert host.offering.catalogues_and_default_model()[1] == "b"
        assert host.catalogues.default_model() == "b"

    def test_a_choice_that_another_webui_still_has_stays(self, host: Host) -> None:
        host.sees("gpu0", catalogue("a", loaded="a"))
        host.sees("gpu1", catalogue("a", "z", loaded="z"))
        host.sees("gpu0", catalogue("b", loaded="b"))
        assert host.offering.catalogues_and_default_model()[1] == "a"

    @pytest.mark.parametrize("text", ["b", "b.safetensors"])
    def test_the_setting_goes_before_what_is_loaded(self, sqlite: Database, text: str) -> None:
        host = Host(sqlite, text)
        host.sees("gpu0", catalogue("a", "b", loaded="a"))
        assert host.offering.catalogues_and_default_model()[1] == "b"

    def test_a_setting_that_no_webui_has_is_not_replaced(self, sqlite: Database) -> None:
        host = Host(sqlite, "missing")
        host.sees("gpu0", catalogue("a", loaded="a"))
        assert host.offering.catalogues_and_default_model()[1] is None


class TestRefresh:
    def known(self, host: Host, *, seconds_ago: float) -> None:
        host.slots.set_health("gpu0", "up")
        host.catalogues.put("gpu0", catalogue("a").to_json(), host.catalogues.now() - seconds_ago)

    def refresh(self, host: Host, on_refresh_wanted: Callable[[], object]) -> bool:
        host.offering._on_refresh_wanted = on_refresh_wanted
        return host.offering.await_refresh()

    def test_it_waits_until_each_webui_that_is_up_was_asked(self, host: Host) -> None:
        self.known(host, seconds_ago=10)
        assert self.refresh(host, lambda: self.known(host, seconds_ago=0))
        assert not host.catalogues.refresh_wanted("gpu0")

    def test_webuis_that_were_asked_lately_are_left_alone(self, host: Host) -> None:
        self.known(host, seconds_ago=1)
        assert not self.refresh(host, pytest.fail)

    def test_nobody_waits_for_webuis_that_are_down_or_that_no_worker_asks(self, host: Host, sqlite: Database) -> None:
        assert not self.refresh(host, pytest.fail)
        self.known(host, seconds_ago=10)
        with sqlite.write() as connection:
            connection.execute(text("UPDATE workers SET heartbeat_at = heartbeat_at - 60"))
        assert not self.refresh(host, pytest.fail)

    def test_one_that_does_not_answer_is_waited_for_for_a_moment(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(offering_module, "REFRESH_PATIENCE_SECONDS", 0.1)
        self.known(host, seconds_ago=10)
        notifications: list[None] = []
        assert self.refresh(host, lambda: notifications.append(None))
        assert len(notifications) == 1

    def test_of_many_requests_at_once_one_has_them_asked(self, host: Host) -> None:
        self.known(host, seconds_ago=10)
        together, notifications = Barrier(8), []

        def notification() -> None:
            notifications.append(None)
            # The catalogue is of a time after all of them have asked: one that asks after a refresh began needs another refresh.
            self.known(host, seconds_ago=-1)

        def ask(_number: int) -> bool:
            together.wait()
            return self.refresh(host, notification)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        assert any(answers)
        assert len(notifications) == 1

    def test_only_a_few_requests_wait_at_a_time(self, host: Host) -> None:
        self.known(host, seconds_ago=10)
        one_was_refused = Event()

        def notification() -> None:
            assert one_was_refused.wait(30)
            self.known(host, seconds_ago=-1)

        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(self.refresh, host, notification) for _ in range(5)]
            first = next(as_completed(asked))
            one_was_refused.set()
            assert not first.result()
            assert sorted(future.result() for future in asked) == [False, True, True, True, True]
