"""The routes that read a picture: png-info and interrogate."""

from __future__ import annotations

from flask import Response

from app.simulator import pictures, validation
from app.simulator.errors import HttpError
from app.simulator.infotext import parse_infotext
from app.simulator.responses import as_json
from app.simulator.routes.requests import Route, read_body
from app.simulator.simulator import Simulator


class ImageRoutes:
    """Decodes a posted picture and says what is known of it."""

    def __init__(self, simulator: Simulator) -> None:
        self._flavour = simulator.flavour

    def routes(self) -> list[Route]:
        """Both routes."""
        return [
            ("POST", "/sdapi/v1/png-info", self._png_info),
            ("POST", "/sdapi/v1/interrogate", self._interrogate),
        ]

    def _png_info(self) -> Response:
        fields = validation.read_fields(validation.PNG_INFO_FIELDS, read_body(self._flavour), self._flavour.pydantic)
        image = pictures.decode(fields["image"])
        texts = {name: text for name, text in image.info.items() if isinstance(text, str)}
        info = texts.pop("parameters", "")
        return as_json({"info": info, "items": texts, "parameters": parse_infotext(info)})

    def _interrogate(self) -> Response:
        fields = validation.read_fields(validation.INTERROGATE_FIELDS, read_body(self._flavour), self._flavour.pydantic)
        pictures.decode(fields["image"] or "")
        if fields["model"] not in ("clip", "deepdanbooru"):
            raise HttpError(404, "Model not found")
        return as_json({"caption": "a simulated picture"})
