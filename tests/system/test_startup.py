"""The start of ``gunicorn wsgi:app`` and ``sd-gateway serve``, with settings that they take and some that they refuse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.harness import CHECKOUT, COMMAND, Gateway, Stage, children, listens

DEFAULT_WEBUI_PORT = 7860


def served(stage: Stage, *options: str) -> Gateway:
    """A gateway that ``sd-gateway serve`` runs, with these options of gunicorn, in an instance folder that is not there yet."""
    gateway = Gateway("served", stage.folder, None, SDG_INSTANCE=stage.folder / "not" / "there")
    gateway.command = [COMMAND, "serve", *options]
    return stage.add(gateway)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gateway]]:
    """A gateway that starts and some that refuse to, by what they must say; started together, which is quicker."""
    stage = Stage(tmp_path_factory.mktemp("startup"))
    try:
        yield {
            # WEB_CONCURRENCY and the rest have defaults too; what stays set keeps the test out of the checkout's own data.
            "": stage.gateway(None, ready=False, WEB_CONCURRENCY=None, SDG_HOST_ID=None, cold=True),
            "--preload": stage.gateway(None, ready=False, options=["--preload"], cold=True),
            "unknown setting SDG_WEBUI_URL": stage.gateway(None, ready=False, SDG_WEBUI_URL="http://127.0.0.1:7860"),
            "SDG_THREADS": stage.gateway(None, ready=False, SDG_THREADS="many"),
            "serve": served(stage, "--workers", "1"),
        }
    finally:
        stage.clear()


@pytest.mark.parametrize("named", ["--preload", "unknown setting SDG_WEBUI_URL", "SDG_THREADS"])
def test_refuses_to_start_and_says_why(started: dict[str, Gateway], named: str) -> None:
    gateway = started[named]

    assert gateway.wait() != 0
    assert named in gateway.text()
    assert gateway.files() == set()


@pytest.mark.skipif(listens(DEFAULT_WEBUI_PORT), reason="somebody listens on the WebUI's default port")
@pytest.mark.skipif((CHECKOUT / "instance" / "settings.toml").exists(), reason="instance/settings.toml has its own say")
def test_without_settings_no_simulator_is_used(started: dict[str, Gateway]) -> None:
    gateway = started[""]
    gateway.await_ready("degraded")

    answer = gateway.http.get("/readyz")
    assert answer.status_code == 200
    assert "No WebUI answers." in answer.json()["reasons"]
    refused = gateway.post()
    assert (refused.status_code, refused.json()["type"]) == (503, "no-catalogue")
    assert gateway.http.get("/livez").json() == {"status": "ok"}
    assert gateway.stop() == 0


def test_serve_makes_its_folder_and_hands_options_on_to_gunicorn(started: dict[str, Gateway]) -> None:
    gateway = started["serve"]
    gateway.await_ready("degraded")
    assert (gateway.log.parent / "not" / "there").is_dir()
    # SDG_BIND is honoured, and --workers wins over WEB_CONCURRENCY.
    assert len(children(gateway.running.pid)) == 1
    assert gateway.stop() == 0
