"""The endpoints over what was made: histories, jobs, images, parameters, deletion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from app.api.http.delivery import Delivery
from app.api.http.openapi import Blueprint
from app.api.http.representation import Presenter
from app.api.ports import Services
from app.api.schemas import examples
from app.api.schemas.examples import USER
from app.api.schemas.requests import JobsQuery, PageQuery
from app.api.schemas.responses import Deleted, History, Job, Jobs, complete_args
from app.parameters import LONGEST_USER_ID, TYPES, Type
from app.records.layout import FILENAME_PATTERN, NAME_PATTERN

_ID: Mapping[str, Any] = {
    "in": "path",
    "name": "id",
    "description": "The user id.",
    "example": USER,
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_USER_ID},
}
_TYPE: Mapping[str, Any] = {
    "in": "path",
    "name": "type",
    "description": "How the picture was made.",
    "example": "txt2img",
    "schema": {"type": "string", "enum": list(TYPES)},
}
_NAME: Mapping[str, Any] = {
    "in": "path",
    "name": "name",
    "description": "The name of a job; a record has the name of its job.",
    "example": examples.NAME,
    "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
}
_FILENAME: Mapping[str, Any] = {
    "in": "path",
    "name": "filename",
    "description": "The name of a record or of one of its image files.",
    "example": examples.IMAGE,
    "schema": {"type": "string", "pattern": f"^{FILENAME_PATTERN}$"},
}
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_OF_A_FILE = ("not-found", "unknown-type", "job-not-found", "validation-failed", "database-unavailable")
_CONDITIONS: tuple[Mapping[str, Any], ...] = (
    {
        "in": "header",
        "name": "Range",
        "description": "The bytes that are wanted (RFC 9110, section 14).",
        "schema": {"type": "string"},
    },
    {
        "in": "header",
        "name": "If-None-Match",
        "description": "The ETag of the copy that the client has (RFC 9110, section 13).",
        "schema": {"type": "string"},
    },
)
_IMG2IMG_HISTORY: Mapping[str, Any] = {"records": [examples.IMG2IMG_JOB], "next": None}
_ETAG = {
    "ETag": {
        "description": "An image never changes under its name, so neither does this.",
        "schema": {"type": "string"},
    }
}


def blueprint(services: Services, presenter: Presenter, delivery: Delivery) -> Blueprint:
    """The endpoints over these services; ``delivery`` sends the files."""
    blp = Blueprint("archive", __name__, description="Jobs, records and their files")
    _add_lists(blp, services, presenter)
    _add_files(blp, services, delivery)
    return blp


def _add_lists(blp: Blueprint, services: Services, presenter: Presenter) -> None:
    archive = services.archive

    @blp.route("/t2ihistory/<id>", parameters=[_ID])
    @blp.arguments(PageQuery, location="query")
    @blp.answers(200, History, "Newest first; empty for an unknown user.")
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("History of text to image · 查询文生图记录", "List the succeeded txt2img jobs of a user.")
    def list_txt2img_history(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.history(user, "txt2img", query["limit"], query.get("before"))
        return presenter.page("records", views, before, ("t2ihistory", user))

    @blp.route("/i2ihistory/<id>", parameters=[_ID])
    @blp.arguments(PageQuery, location="query")
    @blp.answers(200, History, "Newest first; empty for an unknown user.", example=_IMG2IMG_HISTORY)
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("History of image to image · 查询图生图记录", "List the succeeded img2img jobs of a user.")
    def list_img2img_history(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.history(user, "img2img", query["limit"], query.get("before"))
        return presenter.page("records", views, before, ("i2ihistory", user))

    @blp.route("/jobs/<id>", parameters=[_ID])
    @blp.arguments(JobsQuery, location="query")
    @blp.answers(200, Jobs, "Newest first; empty for an unknown user.")
    @blp.problems("validation-failed", "not-found", "database-unavailable")
    @blp.about("The jobs of a user · 查询用户任务", "List the jobs of a user in any state, or in one.")
    def list_jobs(query: dict[str, Any], user: str) -> dict[str, Any]:
        views, before = archive.jobs(user, query.get("status"), query["limit"], query.get("before"))
        return presenter.page("jobs", views, before, ("jobs", user))

    @blp.route("/jobs/<id>/<type>/<name>", parameters=[_ID, _TYPE, _NAME])
    @blp.answers(200, Job, "The job as it is now.")
    @blp.problems(*_OF_A_FILE)
    @blp.about("One job · 查询任务", "Get one job in any state, for example to follow its progress.")
    def get_job(user: str, kind: Type, name: str) -> dict[str, Any]:
        return presenter.job(archive.job(user, kind, name))


def _add_files(blp: Blueprint, services: Services, delivery: Delivery) -> None:
    archive = services.archive
    path = [_ID, _TYPE, _FILENAME]

    @blp.route("/get_images/<id>/<type>/<filename>", parameters=path)
    @blp.answers(200, _BINARY, "The file.", media_type="image/png", headers=_ETAG)
    @blp.also(200, "The file.", content={"image/jpeg": {"schema": _BINARY}, "image/webp": {"schema": _BINARY}})
    @blp.also(206, "The bytes that Range names.", content={"image/*": {"schema": _BINARY}})
    @blp.also(304, "The copy that the client has is current.")
    @blp.problems(*_OF_A_FILE, "file-missing", "precondition-failed", "range-not-satisfiable", "storage-unavailable")
    @blp.about("An image · 请求图片", "Get the bytes of an image.", parameters=_CONDITIONS)
    def get_image(user: str, kind: Type, filename: str) -> Response:
        return delivery.send(archive.file(user, kind, filename))

    @blp.route("/get_args/<id>/<type>/<filename>", parameters=path)
    @blp.answers(
        200,
        complete_args(services.parameters),
        "The parameters, ready to be posted again. Those of one image have its own seed, and batch_size 1.",
    )
    @blp.problems(*_OF_A_FILE, "file-missing", "storage-unavailable")
    @blp.about("Parameters to post again · 请求作图参数", "Get the parameters of a record, or of one of its images.")
    def get_args(user: str, kind: Type, filename: str) -> dict[str, Any]:
        return archive.args(user, kind, filename)

    @blp.route("/delete/<id>/<type>/<filename>", methods=["DELETE"], parameters=path)
    @blp.answers(
        200,
        Deleted,
        "The deleted files: those of the whole record, or of one image. A record goes with its last image.",
    )
    @blp.problems(*_OF_A_FILE, "file-missing", "job-unfinished", "storage-unavailable", "storage-failed")
    @blp.about(
        "Delete a record or an image · 删除作图记录",
        "Delete a whole record by its name, or one image by its file name. An unfinished job cannot be deleted.",
    )
    def delete_files(user: str, kind: Type, filename: str) -> dict[str, Any]:
        return {"deleted": archive.delete(user, kind, filename)}
