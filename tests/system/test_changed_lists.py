"""A WebUI's list of models changes while two processes serve: soon known by all, and never waited for long."""

from __future__ import annotations

import time

from tests.system.harness import Gateway, Simulator, Stage, until

#: What asking every WebUI may take beside the two seconds that a request waits for it, on a busy machine.
SLACK_SECONDS = 3.0


def change(simulator: Simulator, **lists: list[str]) -> None:
    assert simulator.http.request("POST", "/simulator/models", json=lists).ok


def accepted(gateway: Gateway, model: str) -> bool:
    """Post a request for a model, whichever process takes it; it is answered soon in any case."""
    began = time.monotonic()
    answer = gateway.post(model=model, prefer="respond-async")
    assert time.monotonic() - began < 2.0 + SLACK_SECONDS
    assert answer.status_code in (202, 422), answer.text
    return answer.status_code == 202


def test_a_model_is_usable_within_seconds_of_being_added_and_unknown_again_once_it_was_missed(stage: Stage) -> None:
    simulator = stage.simulator(seconds_per_image=0.0)
    gateway = stage.gateway([simulator], processes=1)
    change(simulator, add=["brand-new"])
    # WebUIs that were asked in the last five seconds are not asked again; far less than the minute between two refreshes.
    until(lambda: accepted(gateway, "brand-new"), "the new model is accepted", seconds=15.0)
    made = gateway.post(model="brand-new")
    assert gateway.succeeded(made)["args"]["model"] == "brand-new"

    gateway.succeeded(gateway.post())
    change(simulator, remove=["brand-new"])
    failed = gateway.post(model="brand-new")
    assert failed.status_code == 502
    until(lambda: not accepted(gateway, "brand-new"), "the model is refused", seconds=15.0)


def test_a_server_without_a_model_is_known_to_have_one_when_it_has(stage: Stage) -> None:
    simulator = stage.simulator("--fresh", "--seconds-per-first-load", "3600")
    gateway = stage.gateway([simulator], ready=False)
    gateway.await_ready("degraded")
    until(lambda: gateway.post(prefer="respond-async").json()["type"] == "no-default-model", "the default is missing")
    # A person chooses the model in the page.
    assert simulator.http.request("POST", "/sdapi/v1/options", json={"sd_model_checkpoint": "simulated-two"}).ok
    # It is asked every two seconds, far less than the minute between two refreshes of one that has a model.
    gateway.await_ready("ok", seconds=15.0)
    assert gateway.post(prefer="respond-async").json()["args"]["model"] == "simulated-two"
