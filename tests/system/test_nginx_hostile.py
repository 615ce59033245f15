"""Behind the shipped nginx hostile clients of all kinds at once do no harm, even from the address of the honest client."""

from __future__ import annotations

import contextlib
import statistics
import time

import pytest

from tests.system.harness import NGINX, Gateway, Stage, allow_descriptors, ask, picture, until
from tests.system.hostile import HALF_BODY, HALF_HEAD, SILENT, Hostile, Kind, not_reading

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

_SECONDS = 45.0
_PROMPTLY = 1.0


@pytest.mark.soak
@pytest.mark.alone
def test_a_thousand_silent_and_128_of_each_other_kind_at_once_keep_nobody_waiting(
    stage: Stage, house: Gateway, record_property: pytest.RecordProperty
) -> None:
    allow_descriptors(8000)
    shared = {name: house.environ[name] for name in ("SDG_DATA_DIR", "SDG_DATABASE_URL", "SDG_WEBUI_URLS")}
    gateway = stage.gateway(None, **shared, SDG_WORKER="external", SDG_ACCEL="nginx")
    nginx = stage.nginx(gateway, house.data)
    small, large = (house.succeeded(house.post(id=name))["images"][0] for name in ("small", "large"))
    # More than the kernel's buffers of a connection take.
    house.find(large["filename"]).write_bytes(bytes(16_000_000))
    kinds: dict[Kind, int] = {SILENT: 1000, HALF_HEAD: 128, HALF_BODY: 128, not_reading(large["url"], 2): 128}
    times: dict[str, list[float]] = {"/livez": [], "a stored picture": [], "a new picture": []}

    def timed(what: str, method: str, path: str, **options: object) -> None:
        begun = time.monotonic()
        answer = nginx.http.request(method, path, **options)
        times[what].append(time.monotonic() - begun)
        assert answer.status_code == 200, answer.text

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Hostile(nginx.url, kind, count)) for kind, count in kinds.items()]
        ends = time.monotonic() + _SECONDS
        most = dict.fromkeys(kinds, 0)
        while time.monotonic() < ends:
            timed("/livez", "GET", "/livez")
            timed("a stored picture", "GET", small["url"])
            timed("a new picture", "POST", "/txt2img", json=picture(id="honest"))
            for client, kind in zip(clients, kinds, strict=True):
                most[kind] = max(most[kind], client.connected)
            time.sleep(0.05)
        # All were there at once, and each was ended at least once.
        assert most == kinds
        for client, (kind, count) in zip(clients, kinds.items(), strict=True):
            assert client.closed >= count, kind.name
    for what, seconds in times.items():
        record_property("shown", f"{what}: {len(seconds)} times, the slowest {max(seconds):.3f} s")
    assert max(times["/livez"]) < _PROMPTLY
    assert max(times["a stored picture"]) < _PROMPTLY
    # Most of it is the WebUI's time and the disk's.
    assert statistics.median(times["a new picture"]) < _PROMPTLY
    until(lambda: ask(nginx.url, "GET", "/readyz").status == 200, "it goes on")
