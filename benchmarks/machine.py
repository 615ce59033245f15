"""Facts about this machine and its processes, read from /proc (proc(5)); Linux only, as the gateway's host is."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> list[str]:
    """Cores, memory and versions, a line each."""
    model = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")), ": unknown")
    packages = ("gunicorn", "Flask", "SQLAlchemy", "requests", "pillow")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    return [
        f"{cores()} cores ({model.partition(':')[2].strip()}), {memory:.1f} GiB of memory, {platform.platform()}",
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {versions}",
    ]


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _read(path: str | Path) -> str:
    return Path(path).read_text("utf-8", "replace")


def _field(path: str | Path, name: str) -> str:
    return next(line for line in _read(path).splitlines() if line.startswith(f"{name}:")).partition(":")[2].strip()


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; the second, the name, may hold spaces."""
    return _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()


def runs(pid: int) -> bool:
    """Whether a process still holds anything.

    One that waits only to be reaped (Z) does not, once its last thread is gone: the first one may end before the others.
    """
    try:
        return _stat(pid)[0] not in "ZX" or len(list((_PROC / str(pid) / "task").iterdir())) > 1
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its living descendants have used, user and system."""
    ticks = 0
    for member in family(pid):
        with suppress(OSError):
            ticks += sum(int(value) for value in _stat(member)[11:13])
    return ticks / _TICKS


def peak_mb(pid: int) -> float:
    """The most memory that was ever resident (VmHWM), in megabytes of 10^6 bytes."""
    return int(_field(_PROC / str(pid) / "status", "VmHWM").split()[0]) * 1024 / 1e6


def resident_mb(pid: int) -> float:
    """The memory that is resident now (VmRSS), in megabytes of 10^6 bytes."""
    return int(_field(_PROC / str(pid) / "status", "VmRSS").split()[0]) * 1024 / 1e6


@dataclass(frozen=True)
class CpuClock:
    """The machine's CPU time at one moment, in ticks of all cores."""

    busy: int
    total: int
    at: float

    @classmethod
    def now(cls) -> Self:
        """Read /proc/stat; idle and waiting for a disk are not busy."""
        values = [int(value) for value in _read("/proc/stat").splitlines()[0].split()[1:9]]
        idle = values[3] + values[4]
        return cls(sum(values) - idle, sum(values), time.perf_counter())

    def share_until(self, later: CpuClock) -> float:
        """The share of all cores that was busy from this moment to a later one, 0…1."""
        return (later.busy - self.busy) / max(1, later.total - self.total)
