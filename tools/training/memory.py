"""The memory that a run on a CPU takes, found before it starts, and the memory that there is.

Steps with a few rows are taken, while the bytes of the living tensors are counted after each operation. They grow linearly with the rows.
So the figure follows any architecture, and finding it takes seconds and little more memory than the model, whose size is known before.
"""

from __future__ import annotations

import dataclasses
import math
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastinfer.errors import InputError
from training.objectives import Objective

GB = 1e9
FEW, MANY = 2, 4  # rows of the steps from which the bytes of more rows follow
SPREAD = 1.4  # bytes taken per byte of living tensors, measured at peaks of 1.4 to 2 GB: scratch space, and what malloc does not give back
LATER = 0.25 * GB  # bytes that a process takes beside tensors after the look: buffers of threads and of the tokenizer, the last plot


@dataclasses.dataclass(frozen=True)
class Needed:
    """Bytes that a run takes at its peak, by what takes them."""

    process: float
    weights: float
    teacher: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        """The bytes of all parts."""
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        parts = {"process and text": self.process, "weights": self.weights, "teacher": self.teacher}
        parts |= {"gradients and optimizer": self.optimizer, "activations": self.activations}
        return f"{self.total / GB:.1f} GB ({', '.join(f'{name} {size / GB:.2f}' for name, size in parts.items() if size)})"


class _Living(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while they live. `course` has the count whenever it has grown."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.course, self.known = 0, [0], set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.course.append(self.now)
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class _Unfilled(TorchDispatchMode):
    """Leaves out what fills tensors at random. Without data, PyTorch looks at it in Python, after imports that take seconds."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if operation in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0]
        return operation(*args, **(kwargs or {}))


Batch = tuple[int, Callable[[int], tuple]]  # the rows of a part of a batch, and a function that makes so many


def needed(
    make: Callable[[], Objective],
    batches: Sequence[Batch],
    parts: int,
    *,
    bfloat16: bool,
    text: Sequence[str | Path] = (),
    limit: float = math.inf,
) -> Needed:
    """The memory that steps of training take.

    make     the objective, made anew: its encoder learns, and other modules in it are teachers
    batches  parts of a batch, as the objective's forward pass takes them; the one that takes most counts
    parts    parts of a batch
    text     files that are read
    limit    where the model alone takes more bytes, no step is taken: activations are then 0
    """
    read = sum(Path(file).stat().st_size * (3 if Path(file).suffix in (".txt", ".jsonl") else 12) for file in text)
    with torch.device("meta"), _Unfilled():
        objective = make()
    learned = sum(p.numel() * 4 for p in objective.encoder.parameters() if p.requires_grad)
    weights = _size(objective.encoder)
    alone = Needed(_of_process() + LATER + read, *(SPREAD * part for part in (weights, _size(objective) - weights, 3 * learned, 0)))
    if alone.total > limit:
        return alone
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so few rows repay no second thread, and two that share a busy CPU take five times as long
    try:
        objective = make().train()
        most = max(_activations(objective, *batch, parts=parts, bfloat16=bfloat16) for batch in batches)
    finally:
        torch.set_num_threads(threads)
    return dataclasses.replace(alone, activations=SPREAD * max(0, most - learned))


def _activations(objective: Objective, rows: int, batch: Callable[[int], tuple], *, parts: int, bfloat16: bool) -> float:
    """The bytes of the tensors that a step with so many rows makes, at their most, its gradients included."""

    def course(count: int) -> list[int]:
        with _Living() as living:
            if parts > 1:  # the gradients of the first part are there when the second is computed
                for parameter in objective.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = objective(*batch(count))["loss"]
            loss.backward()
            del loss
        objective.zero_grad(set_to_none=True)
        return living.course

    if rows <= MANY:
        return max(course(rows))
    few, many = course(FEW), course(MANY)
    if len(few) != len(many):  # the operations depend on the number of rows
        return max(many) * rows / MANY
    return max(b + (b - a) / (MANY - FEW) * (rows - MANY) for a, b in zip(few, many, strict=True))


def _size(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def check(
    make: Callable[[], Objective],
    batches: Callable[[int], Sequence[Batch]],
    *,
    rows: int,
    accumulate: int,
    size: tuple[str, int],
    memory: float | None,
    processes: int = 1,
    bfloat16: bool = False,
    text: Sequence[str | Path] = (),
) -> str:
    """A line that says how much memory the run takes and how much there is.

    make, batches  as in needed(); batches gets the number of parts of a batch
    rows           of a batch
    accumulate     parts of a batch
    size           the name and the value of the setting of the batch's size
    memory         GB that the run may take; None: those that are available
    processes      that run at the same time

    Raises InputError, which says what to lower and by how much, where the memory does not suffice.
    """
    limit = memory * GB / processes if memory else available() / processes

    def found(parts: int) -> Needed:
        return needed(make, batches(parts), parts, bfloat16=bfloat16, text=text, limit=limit)

    accumulate = min(accumulate, rows)
    asked = found(accumulate)
    each = f" for each of {processes} processes" if processes > 1 else ""
    there = f"{limit / GB:.1f} GB " + ("that it may take (memory)" if memory else "that are available") + each
    if asked.total <= limit:
        return f"memory: about {asked} of {there}"
    smaller_model = "take a smaller model, vocabulary or teacher, or close other programs"
    if not asked.activations:
        raise InputError(f"training takes at least {asked} without activations, more than the {there}: {smaller_model}")
    message, parts = f"training takes about {asked}, more than the {there}", accumulate
    while parts < rows:
        parts = min(2 * parts, rows)
        if (less := found(parts)).total <= limit:
            name, value = size
            smaller = max(1, value * accumulate // parts)
            raise InputError(
                f"{message}: give --accumulate {parts}, which computes a batch in {parts} parts and takes about {less.total / GB:.1f} GB, "
                f"or --{name.replace('_', '-')} {smaller} (now {value})"
            )
    least = asked if accumulate == rows else less
    raise InputError(f"{message}. One row at a time (--accumulate {rows}) takes about {least}: lower max_tokens, {smaller_model}")


# --- what there is ---------------------------------------------------------------------------------


def available() -> float:
    """Bytes that this process can take more: the least of the machine's and of its control groups'."""
    found = [total - used for total, used in _groups()]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:  # macOS says only how much memory it has
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0.0, min(found, default=float("inf"))) + _of_process()


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """(limit, used) in bytes of this process's control group (version 1 or 2) and of its parents, where they have a limit.

    Pages of files do not count as used, because the kernel drops them when memory is short.
    """
    found = []
    try:
        groups = [line.strip().split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base, limit, usage = (
            (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else (root, "memory.max", "")
        )
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            folder = base.joinpath(*parts[:depth])
            try:
                most = int((folder / limit).read_text())  # "max" is no number: no limit
                used = int((folder / (usage or "memory.current")).read_text())
                state = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            found.append((most, used - int(state.get("total_inactive_file", state.get("inactive_file", 0)))))
    return found


def _of_process() -> float:
    """Bytes of memory that this process has taken."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.4 * GB  # a process that has imported PyTorch
