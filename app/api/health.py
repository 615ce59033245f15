"""Whether the gateway lives, and can make pictures."""

from __future__ import annotations

from typing import Any

from app.api.http.guard import present_guard
from app.api.http.openapi import Blueprint
from app.api.schemas.responses import Liveness, Readiness
from app.services import Services


def blueprint(services: Services) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("health", __name__, description="The state of the gateway")

    @blp.route("/livez")
    @blp.answers(200, Liveness, "The process answers; nothing else was checked.")
    @blp.problems(public=True)
    @blp.about("Liveness · 存活检查", "Whether the process answers.")
    def get_liveness() -> dict[str, Any]:
        return {"status": "ok"}

    @blp.route("/readyz")
    @blp.answers(
        200,
        Readiness,
        "ok: pictures can be made, or the queue is paused, as the reasons say then. degraded: not now; the reasons say whether "
        "requests are accepted meanwhile.",
    )
    @blp.problems("database-unavailable", "storage-unavailable", public=True)
    @blp.about("Readiness · 就绪检查", "Whether pictures can be made. It reads the stored state and calls no WebUI.")
    def get_readiness() -> dict[str, Any]:
        reasons = services.readiness()
        status = {"status": "degraded" if reasons else "ok"}
        return status | {"reasons": reasons + services.notices()} if present_guard().recognises() else status

    return blp
