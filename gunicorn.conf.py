"""``gunicorn wsgi:app`` in this folder: gunicorn reads this file, and with it the configuration of the package."""

import sys

# At SIGHUP gunicorn reads this file again, and that is to read the settings again.
sys.modules.pop("app.serving.gunicorn_conf", None)

from app.serving.gunicorn_conf import *  # noqa: E402, F403

wsgi_app = "wsgi:app"
