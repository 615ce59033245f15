"""What a client may choose from, and whether the gateway lives and can make pictures."""

from __future__ import annotations

from typing import Any

from app.api.http.openapi import Blueprint
from app.api.ports import Services
from app.api.schemas.responses import Liveness, Options, Readiness


def blueprint(services: Services) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("gateway", __name__, description="The gateway itself")

    @blp.route("/options")
    @blp.answers(200, Options, "The names that all WebUIs together offer.")
    @blp.problems("no-catalogue", "database-unavailable")
    @blp.about("The names a request may use · 查询可选项", "List the names that a request may use.")
    def list_options() -> dict[str, Any]:
        return services.options()

    @blp.route("/livez")
    @blp.answers(200, Liveness, "The process answers; nothing else was checked.")
    @blp.problems()
    @blp.about("Liveness · 存活检查", "Whether the process answers.")
    def get_liveness() -> dict[str, Any]:
        return {"status": "ok"}

    @blp.route("/readyz")
    @blp.answers(
        200,
        Readiness,
        "ok: pictures can be made. degraded: not now; the reasons say whether requests are accepted meanwhile.",
    )
    @blp.problems("database-unavailable", "storage-unavailable")
    @blp.about("Readiness · 就绪检查", "Whether pictures can be made. It reads the stored state and calls no WebUI.")
    def get_readiness() -> dict[str, Any]:
        reasons = services.readiness()
        return {"status": "degraded" if reasons else "ok", "reasons": reasons}

    return blp
