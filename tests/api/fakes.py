"""Services that answer what a test told them, and remember what they were asked."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from app import config as configuration
from app.gateway.access import Access
from app.gateway.revocation import Revocation
from app.gateway.signing import Signing
from app.parameters import PARAMETERS, Parameters

NAME = "20261122T061530123-9f2c4e7a"
IMAGE = f"{NAME}-1-0.png"

TXT2IMG: dict[str, Any] = {
    "id": "u1",
    "prompt": "a lighthouse, 灯塔",
    "negative_prompt": "",
    "width": 512,
    "height": 768,
    "seed": "-1",
    "steps": 20,
    "hr_upscaler": "",
    "cfg_scale": 7.5,
    "style": "",
    "batch_size": 1,
}
IMG2IMG: dict[str, Any] = {**TXT2IMG, "init_images": "iVBORw0KGgo="}


def job_view(**changes: Any) -> dict[str, Any]:
    """A succeeded txt2img job as the services show it."""
    args = {name: value for name, value in TXT2IMG.items() if name != "seed"}
    view = {
        "id": "u1",
        "type": "txt2img",
        "name": NAME,
        "status": "succeeded",
        "cancel_requested": False,
        "simulated": False,
        "created_at": "2026-11-22T06:15:30.123Z",
        "started_at": "2026-11-22T06:15:30.200Z",
        "finished_at": "2026-11-22T06:15:40.200Z",
        "position": None,
        "progress": 1.0,
        "eta": None,
        "args": {**args, "seed": "42", "sampler_name": "Euler", "model": "m"},
        "images": [
            {
                "filename": IMAGE,
                "seed": "42",
                "width": 512,
                "height": 768,
                "bytes": 401233,
                "media_type": "image/png",
                "infotext": "a lighthouse\nSteps: 20",
            }
        ],
        "init_image": None,
        "webui": {"model": "m", "sampler": "Euler", "version": "v1.10.1"},
        "error": None,
    }
    return {**view, **changes}


def queued_view(**changes: Any) -> dict[str, Any]:
    waiting = {
        "status": "queued",
        "started_at": None,
        "finished_at": None,
        "position": 3,
        "progress": 0.0,
        "eta": 12.5,
        "images": [],
        "webui": None,
    }
    return job_view(**{**waiting, **changes})


def failed_view(slug: str, detail: str = "It failed.") -> dict[str, Any]:
    return job_view(status="failed", images=[], webui=None, error={"slug": slug, "detail": detail})


def domain_error(of_slug: str, detail: str = "A safe sentence.", **members: Any) -> Exception:
    """An exception as the packages below raise them."""
    made = type("DomainError", (Exception,), {"slug": of_slug})(detail)
    for name, value in members.items():
        setattr(made, name, value)
    return made


class NoTokens:
    """A table without a token, which counts how often it was asked."""

    asked = 0

    def exist(self) -> bool:
        self.asked += 1
        return False

    def find(self, token_id: str) -> None:
        self.asked += 1


@dataclass
class FakeServices:
    """Each method notes its call in ``calls`` and gives, or raises, what ``answers`` has under its name."""

    config: configuration.Config
    parameters: Parameters = PARAMETERS
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    listens_to_loopback: bool = True

    def __post_init__(self) -> None:
        tokens: Any = NoTokens()
        self.revocation = Revocation(tokens)
        self.access = Access(tokens, lambda _address: None, self.revocation.note_use)
        self.signing = Signing({"1": bytes(32)})

    @property
    def acceptance(self) -> Any:
        return SimpleNamespace(post=lambda *args, **kwargs: self._answer("post", *args, kwargs))

    @property
    def archive(self) -> Any:
        names = ("history", "jobs", "cancel", "cancel_queued", "file", "variant", "args", "delete")
        return SimpleNamespace(**{name: lambda *args, name=name: self._answer(name, *args) for name in names})

    @property
    def long_polls(self) -> Any:
        return SimpleNamespace(job=lambda job, **options: self._answer("job", *job, options))

    @property
    def watching(self) -> Any:
        return SimpleNamespace(
            job=lambda *args: self._answer("watch_job", *args),
            user=lambda *args: self._answer("watch_user", *args),
            close=lambda feed: self.calls.append(("close", feed)),
        )

    @property
    def overview(self) -> Any:
        names = ("queue", "webuis")
        return SimpleNamespace(**{name: lambda *args, name=name: self._answer(name, *args) for name in names})

    def notices(self) -> Any:
        return self.answers.get("notices", [])

    def options(self) -> Any:
        return self._answer("options")

    def readiness(self) -> Any:
        return self._answer("readiness")

    def _answer(self, name: str, *args: Any) -> Any:
        self.calls.append((name, *args))
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer


def settings(**environ: str) -> configuration.Config:
    """Settings from these variables alone, whatever settings.toml the checkout holds."""
    return configuration.load(environ, instance=Path(tempfile.gettempdir()) / "no-such-instance")
