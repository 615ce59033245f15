"""The routes of a simulated WebUI, and those by which a test controls it; :func:`create_simulator` puts them together."""

from __future__ import annotations

from flask import Flask

from app.simulator.routes.catalogue import CatalogueRoutes
from app.simulator.routes.control import ControlRoutes
from app.simulator.routes.error_answers import ErrorAnswers
from app.simulator.routes.extras import ExtrasRoutes
from app.simulator.routes.generation import GenerationRoutes
from app.simulator.routes.images import ImageRoutes
from app.simulator.routes.middleware import Middleware
from app.simulator.routes.process import ProcessRoutes
from app.simulator.routes.status import StatusRoutes
from app.simulator.settings import SimulatorSettings
from app.simulator.simulator import Simulator

_GROUPS = (GenerationRoutes, ExtrasRoutes, ImageRoutes, StatusRoutes, CatalogueRoutes, ProcessRoutes, ControlRoutes)


def create_simulator(settings: SimulatorSettings) -> Flask:
    """A WSGI application that behaves as a WebUI; its :class:`Simulator` is ``app.extensions["simulator"]``."""
    app = Flask("simulator", static_folder=None)
    simulator = Simulator(settings)
    app.extensions["simulator"] = simulator
    for group in _GROUPS:
        for method, path, view in group(simulator).routes():
            app.add_url_rule(path, f"{method} {path}", view, methods=[method], provide_automatic_options=False)
    Middleware(simulator).register(app)
    ErrorAnswers(simulator).register(app)
    return app
