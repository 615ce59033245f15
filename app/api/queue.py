"""The queue and the WebUIs, for people who wait and for operators."""

from __future__ import annotations

from typing import Any

from app.api.http.guard import caller
from app.api.http.openapi import Blueprint
from app.api.http.representation import Presenter
from app.api.schemas.requests import QueueQuery
from app.api.schemas.responses import Queue, Webuis
from app.services import Services


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("queue", __name__, description="The queue and the WebUIs")
    overview = services.overview

    @blp.route("/queue")
    @blp.arguments(QueueQuery, location="query")
    @blp.answers(200, Queue, "The running jobs, and a page of the waiting ones in the order in which they will start.")
    @blp.problems("validation-failed", "database-unavailable")
    @blp.about(
        "The queue · 查询队列",
        "See what runs and what waits. The jobs of the user `id` are named; of all others it is told that they are there. A token "
        "with the scope `admin` names all.",
    )
    def get_queue(query: dict[str, Any]) -> dict[str, Any]:
        shown, following = overview.queue(caller().names(query.get("id")), query["limit"], query.get("before"))
        return presenter.queue(shown, following)

    @blp.route("/webuis")
    @blp.answers(200, Webuis, "The configured WebUIs.")
    @blp.problems("database-unavailable")
    @blp.about("The WebUIs · 查询 WebUI", "See whether the WebUIs answer, and how fast they are. It calls no WebUI.")
    def list_webuis() -> dict[str, Any]:
        return {"webuis": overview.webuis()}

    return blp
