"""The CPU time that the system grants to this process."""

from __future__ import annotations

import os

__all__ = ["cgroup_quota", "first_line"]


def cgroup_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float | None:
    """The CPU quota, in CPUs, of the control group (version 1 or 2): the least of its own and its parents'. None: no limit."""
    try:
        with open(own) as file:
            groups = [line.strip().split(":", 2) for line in file]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in (g for g in groups if len(g) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [p for p in path.split("/") if p and p != ".."]
        for depth in range(len(parts) + 1):
            folder = os.path.join(root, *([] if not controllers else ["cpu"]), *parts[:depth])
            try:
                if controllers:
                    quota, period = (int(first_line(os.path.join(folder, f"cpu.cfs_{name}_us"))) for name in ("quota", "period"))
                else:
                    words = first_line(os.path.join(folder, "cpu.max")).split()
                    quota, period = (-1 if words[0] == "max" else int(words[0])), int(words[1])
            except (OSError, ValueError, IndexError):
                continue
            if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas, default=None)


def first_line(path: str) -> str:
    """The first line of a file."""
    with open(path) as file:
        return file.readline()
