"""What ``/proc`` tells of the processes of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return found + [below for child in found for below in descendants(child)]


def ranks_of(pid: int) -> list[int]:
    """The ranks that a run has started, rank 0 first: each leads a session of its own."""
    return sorted(each for each in descendants(pid) if _fields(each)[3:4] == [str(each)])


def _fields(pid: int) -> list[str]:
    """State, parent, group, session and the rest of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def described(pid: int) -> str:
    """A process's state, parent, session and command line."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:160]
    except OSError:
        command = "gone by now"
    state, parent, _, session = (*_fields(pid)[:4], "-", "-", "-", "-")[:4]
    return f"{pid} {state} parent {parent} session {session}: {command}"


def left_of(pids: Iterable[int], seconds: float = 30) -> list[int]:
    """Those that still run after so many seconds; at once where there are none."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _fields(pid)[:1] not in ([], ["Z"])]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def listening_on(pid: int) -> list[str]:
    """Local addresses of the listening TCP sockets of a process, in the kernel's hexadecimal."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(link))
        except OSError:
            continue
    return [address for address, inode in listening() if f"socket:[{inode}]" in sockets]


def listening() -> list[tuple[str, str]]:
    """(local address, inode) of all listening TCP sockets."""
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return [(fields[1], fields[9]) for fields in lines if fields[3] == "0A"]
