"""One simulated server, apart from its routes."""

from __future__ import annotations

from collections.abc import Callable

from app.simulator.engine import Engine
from app.simulator.faults import Faults
from app.simulator.generation import Studio
from app.simulator.settings import FLAVOUR_TABLE, SimulatorSettings
from app.simulator.stats import Stats


class Simulator:
    """The parts of a server that its routes share, and that a test may reach into.

    :ivar refuse: set by the listening server: closes the listening socket for this many seconds. None while nothing listens.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self.flavour = FLAVOUR_TABLE[settings.flavour]
        self.engine = Engine()
        self.stats = Stats()
        self.faults = Faults(settings.faults)
        self.studio = Studio(settings, self.flavour, self.engine, self.stats, self.faults)
        self.refuse: Callable[[float], None] | None = None
