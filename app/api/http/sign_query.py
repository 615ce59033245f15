"""The query ``?sign=``: the seconds for which the URLs of pictures in an answer are to be valid without a token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from flask import Request

from app.api.http.refusals import ValidationFailed
from app.gateway.signing import LONGEST, SHORTEST

NAME: Final = "sign"
_DESCRIPTION: Final = "The seconds for which the URLs of the pictures are to be valid without a token."
_BOUNDS: Final = {"minimum": SHORTEST, "maximum": LONGEST}
#: For the OpenAPI document: of the field of a schema, and of a parameter that stands alone.
METADATA: Final[Mapping[str, Any]] = {"description": _DESCRIPTION, **_BOUNDS}
PARAMETER: Final[Mapping[str, Any]] = {
    "in": "query",
    "name": NAME,
    "description": _DESCRIPTION,
    "schema": {"type": "integer", **_BOUNDS},
}


def read(request: Request) -> int | None:
    """The seconds that a request asks for; None if it asks for no signatures.

    :raises ValidationFailed: it asks for them in a wrong way.
    """
    if not request.environ.get("QUERY_STRING"):
        return None
    given = request.args.getlist(NAME)
    if not given:
        return None
    if len(given) > 1:
        raise ValidationFailed({NAME: ["Must be given only once."]})
    return parse(given[0])


def parse(text: str) -> int:
    """The seconds that stand in a query.

    :raises ValidationFailed: they may not be asked for.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not SHORTEST <= int(text) <= LONGEST:
        raise ValidationFailed({NAME: [f"Must be an integer from {SHORTEST} to {LONGEST}."]})
    return int(text)
