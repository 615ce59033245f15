"""A small WebUI that draws instead of diffusing: the same routes, shapes and traps, for tests, benchmarks and a first look.

``info.version`` begins with ``simulator``, and every picture says so too.
"""

from __future__ import annotations

from app.simulator.faults import FAULT_KINDS, parse_fault
from app.simulator.routes import create_simulator
from app.simulator.server import SimulatorServer
from app.simulator.settings import FLAVOURS, SimulatorSettings

__all__ = ["FAULT_KINDS", "FLAVOURS", "SimulatorServer", "SimulatorSettings", "create_simulator", "parse_fault"]
