"""Every refusal that passes by itself says over HTTP when to try again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import EXTENSION, create_app
from app.config import load
from app.services import Services
from app.webui.catalogue import Catalogue
from app.webui.models import read_models
from tests.inprocess import FIELDS, make_clean

OFFERED = Catalogue(
    samplers=("Euler",),
    upscalers=("None",),
    models=read_models([{"title": "a.safetensors", "model_name": "a"}]),
    loaded_model="a.safetensors",
)


class Site:
    """A gateway whose worker knows one WebUI and takes no jobs."""

    def __init__(self, folder: Path, offered: Catalogue | None = OFFERED, **settings: str) -> None:
        self.folder = folder
        (folder / "instance").mkdir()
        environ = {
            "SDG_DATA_DIR": str(folder / "data"),
            "SDG_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "SDG_HOST_ID": "testhost",
        }
        app = create_app(load(environ | settings, folder / "instance"))
        self.services: Services = app.extensions[EXTENSION]
        self.client = app.test_client()
        self.services.slots.register("testhost/1", "testhost", ["gpu0"], only=True)
        make_clean(self.services.slots, "gpu0")
        if offered is not None:
            self.services.tables.catalogues.put("gpu0", offered.to_json())
            self.services.offering.update_default_model()

    def post(self, prefer: str = "respond-async", type_: str = "txt2img", **fields: Any) -> Any:
        return self.client.post(f"/{type_}", json=FIELDS | fields, headers={"Prefer": prefer})


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make_site(**options: Any) -> Site:
        made.append(Site(tmp_path, **options))
        return made[-1]

    yield make_site
    for site in made:
        site.services.drain()


def refused(response: Any, status: int, slug: str) -> None:
    assert (response.status_code, response.json["type"]) == (status, slug)
    assert int(response.headers["Retry-After"]) >= 1


def test_no_webui_was_ever_seen(make: Callable[..., Site]) -> None:
    refused(make(offered=None).post(), 503, "no-catalogue")


def test_no_default_model_is_known(make: Callable[..., Site]) -> None:
    site = make(offered=Catalogue(samplers=("Euler",), models=OFFERED.models))
    refused(site.post(), 503, "no-default-model")
    assert site.post(model="a").status_code == 202


def test_the_queue_is_full(make: Callable[..., Site]) -> None:
    site = make(SDG_MAX_QUEUE="1")
    assert site.post().status_code == 202
    refused(site.post(), 503, "queue-full")


def test_the_queue_of_the_user_is_full(make: Callable[..., Site]) -> None:
    site = make(SDG_MAX_QUEUE_PER_USER="1")
    assert site.post().status_code == 202
    refused(site.post(), 429, "user-queue-full")


def test_nobody_may_wait(make: Callable[..., Site]) -> None:
    site = make(SDG_MAX_WAITERS="1")
    site.services.waiters.reserve()
    refused(site.post(prefer="wait=1"), 503, "no-free-waiter")


def test_the_database_is_gone(make: Callable[..., Site]) -> None:
    site = make()
    (site.folder / "gateway.db").rename(site.folder / "elsewhere.db")
    refused(site.post(), 503, "database-unavailable")
    refused(site.client.get("/readyz"), 503, "database-unavailable")


def test_the_data_folder_is_gone(make: Callable[..., Site]) -> None:
    site = make()
    (site.folder / "data").rename(site.folder / "elsewhere")
    (site.folder / "data").touch()
    refused(site.client.get("/readyz"), 503, "storage-unavailable")
