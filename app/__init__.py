"""sd-gateway: a service in front of AUTOMATIC1111 Stable Diffusion WebUI servers."""

from __future__ import annotations

from flask import Flask

from app import api, config, startup
from app.api.application import Application
from app.parameters import PARAMETERS, Parameters

EXTENSION = "sd-gateway"


def create_app(settings: config.Config | None = None, parameters: Parameters = PARAMETERS) -> Flask:
    """Assemble the WSGI application; its services stand in ``app.extensions["sd-gateway"]`` and are not started.

    :param settings: instead of those of the environment.
    :param parameters: the table of request fields.
    :raises app.config.CannotStart: a setting is unknown or malformed, or what it names can't be used.
    """
    settings = settings or config.load()
    app = Application("app", instance_path=str(settings.instance), static_folder=None)
    services = startup.open_services(settings, parameters)
    app.extensions[EXTENSION] = services
    api.init_app(app, services)
    return app
