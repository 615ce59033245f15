"""The members of paths, as the OpenAPI document describes them; :mod:`app.api.http.paths` checks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.api.schemas import examples
from app.parameters import LONGEST_USER_ID, TYPES, USER_ID_PATTERN
from app.records.layout import FILENAME_PATTERN, NAME_PATTERN

ID: Mapping[str, Any] = {
    "in": "path",
    "name": "id",
    "description": "The user id.",
    "example": examples.USER,
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_USER_ID, "pattern": USER_ID_PATTERN},
}
TYPE: Mapping[str, Any] = {
    "in": "path",
    "name": "type",
    "description": "How the picture was made.",
    "example": "txt2img",
    "schema": {"type": "string", "enum": list(TYPES)},
}
NAME: Mapping[str, Any] = {
    "in": "path",
    "name": "name",
    "description": "The name of a job; a record has the name of its job.",
    "example": examples.NAME,
    "schema": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
}
FILENAME: Mapping[str, Any] = {
    "in": "path",
    "name": "filename",
    "description": "The name of a record or of one of its image files.",
    "example": examples.IMAGE,
    "schema": {"type": "string", "pattern": f"^{FILENAME_PATTERN}$"},
}

#: The problems of every path that names a job or a file of it.
PROBLEMS_OF_A_FILE = ("not-found", "unknown-type", "job-not-found", "validation-failed", "database-unavailable")

#: The problems of a URL that a signature may stand in for a token.
PROBLEMS_OF_A_SIGNED_URL = ("url-expired", "bad-signature")
