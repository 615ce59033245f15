"""gunicorn's settings for the bare app: those of the gateway, without its services."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

_SETTINGS = runpy.run_path(str(Path(__file__).resolve().parent.parent / "gunicorn.conf.py"))

wsgi_app = "benchmarks.bare:app"
bind = os.environ["BARE_BIND"]
workers = _SETTINGS["workers"]
worker_class = _SETTINGS["worker_class"]
threads = _SETTINGS["threads"]
backlog = _SETTINGS["backlog"]
keepalive = _SETTINGS["keepalive"]
timeout = _SETTINGS["timeout"]
control_socket_disable = True
accesslog = None
