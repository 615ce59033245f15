"""Signed URLs: what a page shows or follows without a token."""

from __future__ import annotations

from typing import Any

from flask import request

from app.api.http.openapi import PROBLEMS_OF_A_BODY, Blueprint
from app.api.http.signed_urls import UrlSigner
from app.api.schemas.requests import SignRequest
from app.api.schemas.responses import SignedUrls
from app.services import Services


def blueprint(services: Services, signer: UrlSigner) -> Blueprint:
    """The endpoint over these services."""
    blp = Blueprint("sign", __name__, description="URLs that need no token")
    public_url = services.config.public_url

    @blp.route("/sign", methods=["POST"])
    @blp.arguments(SignRequest)
    @blp.answers(200, SignedUrls, "The same URLs, signed, in the same order.")
    @blp.problems(*PROBLEMS_OF_A_BODY, "no-signing-key")
    @blp.about(
        "Sign URLs · 签名链接",
        "Make URLs of pictures and of event streams that are valid without a token, for some time. Whether they exist is not "
        "looked up. Those of pictures are valid for up to a quarter longer, and stay so if the token is revoked.",
    )
    def create_signed_urls(fields: dict[str, Any]) -> dict[str, Any]:
        return {"urls": signer.sign(fields["paths"], fields["seconds"], (public_url, request.script_root))}

    return blp
