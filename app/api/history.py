"""The histories: the succeeded jobs of a user."""

from __future__ import annotations

from typing import Any

from app.api.http.openapi import Blueprint
from app.api.http.representation import Presenter
from app.api.schemas import examples
from app.api.schemas.path_parameters import ID
from app.api.schemas.requests import PageQuery
from app.api.schemas.responses import History
from app.services import Services

_IMG2IMG_HISTORY = {"records": [examples.IMG2IMG_JOB], "next": None}


def blueprint(services: Services, presenter: Presenter) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("history", __name__, description="What was made")
    archive = services.archive

    @blp.route("/t2ihistory/<id>", parameters=[ID])
    @blp.arguments(PageQuery, location="query")
    @blp.answers(200, History, "Newest first; empty for an unknown user.")
    @blp.problems("validation-failed", "not-found", "no-signing-key", "database-unavailable")
    @blp.about("History of text to image · 查询文生图记录", "List the succeeded txt2img jobs of a user.")
    def list_txt2img_history(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.history(user, "txt2img", query["limit"], query.get("before"))
        return presenter.signing_as_requested().page("records", views, before, ("t2ihistory", user))

    @blp.route("/i2ihistory/<id>", parameters=[ID])
    @blp.arguments(PageQuery, location="query")
    @blp.answers(200, History, "Newest first; empty for an unknown user.", example=_IMG2IMG_HISTORY)
    @blp.problems("validation-failed", "not-found", "no-signing-key", "database-unavailable")
    @blp.about("History of image to image · 查询图生图记录", "List the succeeded img2img jobs of a user.")
    def list_img2img_history(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.history(user, "img2img", query["limit"], query.get("before"))
        return presenter.signing_as_requested().page("records", views, before, ("i2ihistory", user))

    return blp
