"""The endpoint that lists the names that a request may use."""

from __future__ import annotations

from typing import Any

from app.api.http.openapi import Blueprint
from app.api.schemas.responses import Options
from app.services import Services


def blueprint(services: Services) -> Blueprint:
    """The endpoint over these services."""
    blp = Blueprint("options", __name__, description="What a request may choose from")

    @blp.route("/options")
    @blp.answers(200, Options, "The names that all WebUIs together offer.")
    @blp.problems("no-catalogue", "database-unavailable")
    @blp.about("The names a request may use · 查询可选项", "List the names that a request may use.")
    def list_options() -> dict[str, Any]:
        return services.options()

    return blp
