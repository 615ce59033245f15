"""The three ways in which a server says no, and the bodies that each flavour gives them (contract: "Error bodies")."""

from __future__ import annotations

from typing import Any


class SimulatedError(Exception):
    """Base of everything that ends a request with an error answer."""


class HttpError(SimulatedError):
    """An ``HTTPException`` of the API: a status and a sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail

    def body(self, *, forge: bool) -> dict[str, Any]:
        """A1111 rebuilds it in its own middleware, which Forge has switched off."""
        if forge:
            return {"detail": self.detail}
        return {"error": "HTTPException", "detail": self.detail, "body": "", "errors": ""}


class CrashError(SimulatedError):
    """An exception inside the server: always 500, named by its class."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    def body(self, *, forge: bool) -> dict[str, Any]:
        """A1111 puts the text under ``errors``, Forge under ``message``."""
        return {"error": self.name, "detail": "", "body": "", "message" if forge else "errors": self.message}


class PlainError(SimulatedError):
    """A failure outside every handler: 500 and a line of text."""


class InvalidError(SimulatedError):
    """A refusal as pydantic words it: 422 and a list of places and reasons."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors
