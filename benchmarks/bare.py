"""The least that Flask and gunicorn can serve a file with: what the gateway's own part is measured against."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask, Response, send_file

_FOLDER = Path(os.environ.get("BARE_FOLDER", ".")).resolve()

app = Flask(__name__, static_folder=None)


@app.get("/<name>")
def file(name: str) -> Response:
    """Send one file."""
    return send_file(_FOLDER / name)
