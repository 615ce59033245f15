"""The files of records: images, parameters to post again, deletion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from app.api.http.delivery import Delivery
from app.api.http.guard import caller, note_change
from app.api.http.openapi import Blueprint
from app.api.http.picture_query import PictureQuery
from app.api.schemas.path_parameters import FILENAME, ID, PROBLEMS_OF_A_FILE, PROBLEMS_OF_A_SIGNED_URL, TYPE
from app.api.schemas.responses import Deleted, complete_args
from app.parameters import Type
from app.services import Services

_PATH = (ID, TYPE, FILENAME)
_BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
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
_ETAG = {
    "ETag": {
        "description": "An image never changes under its name, so neither does this.",
        "schema": {"type": "string"},
    }
}


def blueprint(services: Services, delivery: Delivery) -> Blueprint:
    """The endpoints over these services; ``delivery`` sends the images."""
    blp = Blueprint("files", __name__, description="The files of records")
    _add_images(blp, services, delivery)
    _add_records(blp, services)
    return blp


def _add_images(blp: Blueprint, services: Services, delivery: Delivery) -> None:
    archive, query = services.archive, PictureQuery(services.config.variant_sizes)

    @blp.route("/get_images/<id>/<type>/<filename>", parameters=_PATH)
    @blp.answers(200, _BINARY, "The file.", media_type="image/png", headers=_ETAG)
    @blp.also(200, "The file.", content={"image/jpeg": {"schema": _BINARY}, "image/webp": {"schema": _BINARY}})
    @blp.also(206, "The bytes that Range names.", content={"image/*": {"schema": _BINARY}})
    @blp.also(304, "The copy that the client has is current.")
    @blp.problems(
        *PROBLEMS_OF_A_FILE,
        *PROBLEMS_OF_A_SIGNED_URL,
        "file-missing",
        "precondition-failed",
        "range-not-satisfiable",
        "file-damaged",
        "variants-busy",
        "storage-unavailable",
        "storage-failed",
    )
    @blp.about(
        "An image · 请求图片",
        "Get the bytes of an image, or of a smaller one, or in another format.",
        parameters=(*query.documented(), *_CONDITIONS),
    )
    def get_image(user: str, kind: Type, filename: str) -> Response:
        asked = query.read(request)
        if asked.is_variant:
            file = archive.variant(user, kind, filename, asked.size, asked.extension)
        else:
            file = archive.file(user, kind, filename)
        return delivery.send(file, download=asked.download, until=caller().signed_until)


def _add_records(blp: Blueprint, services: Services) -> None:
    archive = services.archive

    @blp.route("/get_args/<id>/<type>/<filename>", parameters=_PATH)
    @blp.answers(
        200,
        complete_args(services.parameters),
        "The parameters, ready to be posted again. Those of one image have its own seed, and batch_size 1.",
    )
    @blp.problems(*PROBLEMS_OF_A_FILE, "file-missing", "storage-unavailable")
    @blp.about("Parameters to post again · 请求作图参数", "Get the parameters of a record, or of one of its images.")
    def get_args(user: str, kind: Type, filename: str) -> dict[str, Any]:
        return archive.args(user, kind, filename)

    @blp.route("/delete/<id>/<type>/<filename>", methods=["DELETE"], parameters=_PATH)
    @blp.answers(
        200,
        Deleted,
        "The deleted files: those of the whole record, or of one image. A record goes with its last image.",
    )
    @blp.problems(*PROBLEMS_OF_A_FILE, "file-missing", "storage-unavailable", "storage-failed")
    @blp.about(
        "Delete a record or an image · 删除作图记录",
        "Delete a whole record by its name, or one image by its file name. An unfinished job is cancelled and leaves nothing.",
    )
    def delete_files(user: str, kind: Type, filename: str) -> dict[str, Any]:
        deleted = archive.delete(user, kind, filename)
        note_change("files-deleted", user, type=kind, file=filename)
        return {"deleted": deleted}
