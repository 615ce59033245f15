"""Run a command under the limits of a systemd unit, where there is no systemd to do it: ``python confined.py UNIT COMMAND …``

Takes from the unit: UMask, LimitNOFILE, NoNewPrivileges, CapabilityBoundingSet, SystemCallFilter, SystemCallErrorNumber,
RestrictAddressFamilies, RestrictNamespaces and MemoryDenyWriteExecute. The rules are those of systemd.exec(5), and libseccomp
tells them to the kernel. The system calls behind a name like ``@system-service`` are asked of ``systemd-analyze``.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

LIBRARY: Final = "libseccomp.so.2"
ANALYZE: Final = shutil.which("systemd-analyze")

#: seccomp.h
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_EQUAL, _MASKED_EQUAL = 4, 7
#: prctl(2)
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
#: shmat(2)
_SHM_EXEC: Final = 0o100000
_WRITE_AND_EXECUTE: Final = mmap.PROT_WRITE | mmap.PROT_EXEC


class _Comparison(ctypes.Structure):
    """``struct scmp_arg_cmp``."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class Filter:
    """One seccomp filter; of several that are loaded the kernel takes the strictest answer."""

    def __init__(self, otherwise: int) -> None:
        self._library = ctypes.CDLL(LIBRARY, use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def add(self, action: int, call: str, *comparisons: _Comparison) -> None:
        """Answer a system call so where its arguments compare so; one that this machine has not is skipped."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        result = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(comparisons), array
        )
        assert result == 0, f"{call}: {os.strerror(-result)}"

    def load(self) -> None:
        """Put it in force for this process and all that it starts."""
        result = self._library.seccomp_load(self._context)
        assert result == 0, os.strerror(-result)


def service(unit: Path) -> dict[str, list[str]]:
    """The settings of a unit, in order; those of its section [Service] have names of their own."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _groups() -> Mapping[str, list[str]]:
    """The members of each of systemd's named sets of system calls."""
    assert ANALYZE is not None
    text = subprocess.run([ANALYZE, "syscall-filter"], capture_output=True, text=True, check=True).stdout
    groups: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            members = groups[line.strip()] = []
        elif line.startswith("    ") and "#" not in line:
            members.append(line.strip())
    return groups


def allowed_calls(settings: Iterable[str]) -> set[str]:
    """The system calls that the lines of SystemCallFilter leave, the first of which must allow."""
    groups = _groups()

    def expand(name: str) -> set[str]:
        members = groups.get(name, [name])
        return set().union(*(expand(member) if member.startswith("@") else {member} for member in members))

    calls = expand("@default")
    for setting in settings:
        named = set().union(*map(expand, setting.removeprefix("~").split()))
        calls = calls - named if setting.startswith("~") else calls | named
    return calls


def _call_filter(unit: Mapping[str, Sequence[str]]) -> Filter:
    number = getattr(errno, unit["SystemCallErrorNumber"][0])
    calls = Filter(_ERRNO | number)
    for call in allowed_calls(unit["SystemCallFilter"]):
        calls.add(_ALLOW, call)
    return calls


def _argument_filter(unit: Mapping[str, Sequence[str]]) -> Filter:
    refused = Filter(_ALLOW)
    kept = {getattr(socket, name) for name in unit["RestrictAddressFamilies"][0].split()}
    for family in set(range(46)) - kept:
        refused.add(_ERRNO | errno.EAFNOSUPPORT, "socket", _Comparison(0, _EQUAL, family, 0))
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        refused.add(_ERRNO | errno.EPERM, "mmap", _Comparison(2, _MASKED_EQUAL, _WRITE_AND_EXECUTE, _WRITE_AND_EXECUTE))
        for call in ("mprotect", "pkey_mprotect"):
            refused.add(_ERRNO | errno.EPERM, call, _Comparison(2, _MASKED_EQUAL, mmap.PROT_EXEC, mmap.PROT_EXEC))
        refused.add(_ERRNO | errno.EPERM, "shmat", _Comparison(2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC))
    if unit["RestrictNamespaces"] == ["yes"]:
        for call in ("unshare", "setns"):
            refused.add(_ERRNO | errno.EPERM, call)
        # Its flags lie in memory, where no filter sees them; the C library then uses clone.
        refused.add(_ERRNO | errno.ENOSYS, "clone3")
    return refused


def confine(unit: Mapping[str, Sequence[str]]) -> None:
    """Put the limits of a unit's section [Service] in force for this process."""
    os.umask(int(unit["UMask"][0], 8))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(int(unit["LimitNOFILE"][0]), most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    filters = [_call_filter(unit), _argument_filter(unit)]
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert unit["CapabilityBoundingSet"] == [""]
    capability = 0
    # Fails at the first number that the kernel has no capability for.
    while prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    assert unit["NoNewPrivileges"] == ["yes"]
    assert prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    for each in reversed(filters):
        each.load()


if __name__ == "__main__":
    confine(service(Path(sys.argv[1])))
    os.execv(sys.argv[2], sys.argv[2:])
