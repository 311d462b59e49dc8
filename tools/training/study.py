"""train.py finetune: a run for each model, task and seed, some of them at the same time; the results are kept line by line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fastinfer.catalog import folder_of
from fastinfer.conversion import STORED
from fastinfer.errors import InputError, near
from fastinfer.evaluation.metrics import score
from fastinfer.evaluation.table import short_names
from fastinfer.evaluation.tasks import Task
from training import encoder as encoders
from training import memory
from training.comparison import plot, table
from training.finetune import Finetune, finetune, head, predict, tasks_of
from training.labelled import Split, padded_length
from training.objectives import Labelled
from training.runs import Stopped, check_positive, writable
from training.start import Start, open_model
from training.workers import find_device

RESULTS, RECIPE, PLOT = "results.jsonl", "recipe.json", "plot.svg"
# Settings that may differ between the runs of one folder: those that tell runs apart, and those that do not change a result.
FREE = {"models", "tasks", "seeds", "out", "workers", "device", "keep", "stored", "memory"}


class Job(NamedTuple):
    """What tells a run from the others: the folder of its model, the name of its task, its seed."""

    model: str
    task: str
    seed: int


def run(settings: Finetune, resume: bool) -> None:
    """Fine-tune as `settings` say; print a table of the scores, and draw them into OUT/plot.svg."""
    lines = results(settings, resume)
    plot(settings, lines, Path(settings.out) / PLOT)
    print(table(settings, lines))


def results(settings: Finetune, resume: bool = False) -> list[dict[str, Any]]:
    """Fine-tune every model on every task with every seed: a dict per run, as OUT/results.jsonl holds it, by model, task and seed.

    resume  leave out the runs that results.jsonl already holds

    Raises InputError for settings and data that do not fit, and CheckpointError for a model that cannot be read or written.
    """
    named = tasks_of(settings)
    check_positive(settings, "seeds", "workers", "batch", "max_steps", "epochs", "accumulate", "memory")
    if settings.stored not in STORED:
        raise InputError(f"stored is {settings.stored!r}, expected one of {', '.join(STORED)}{near(settings.stored, STORED)}")
    find_device(settings.device)
    for task in named.values():
        task.read(settings.data, task.scored, task.read(settings.data, "train").labels)
    for model in settings.models:
        folder_of(model)
    jobs = [Job(*job) for job in itertools.product(settings.models, named, range(settings.seeds))]
    path = Path(settings.out) / RESULTS
    if path.exists() and not resume:
        raise InputError(f"{settings.out} holds results already: go on with them by --resume, or name another folder")
    writable(path.parent)
    _same_recipe(settings, path.parent / RECIPE)
    done = {_job(line): line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    left = sorted((job for job in jobs if job not in done), key=lambda job: list(named).index(job.task))
    with open(path, "a") as file, tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="run") as bar:
        try:
            for line in _lines(settings, left):
                done[_job(line)] = line
                file.write(json.dumps(line) + "\n")
                file.flush()
                metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in line["metrics"].items())
                told = f"{line['steps']:,} steps, loss {line['loss']:.4g}, {metrics}"
                bar.write(f"{short_names(settings.models)[line['model']]}, {line['task']}, seed {line['seed']}: {told}")
                bar.update()
        except KeyboardInterrupt:
            raise Stopped(
                f"interrupted; {len(done)} of {len(jobs)} runs are kept in {path}: go on with the same settings and --resume"
            ) from None
    return [done[job] for job in jobs]


def _same_recipe(settings: Finetune, path: Path) -> None:
    """Keep the settings in a file. Raises InputError where it has others that change results."""
    mine = json.loads(json.dumps({name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE}))
    if not path.exists():
        path.write_text(json.dumps(mine, indent=2) + "\n")
        return
    kept = json.loads(path.read_text())
    differ = [f"{name} {kept[name]}, now {value}" for name, value in mine.items() if kept.get(name, value) != value]
    if differ:
        raise InputError(f"the runs kept in {path.parent} had {'; '.join(differ)}: give the same settings, or name another folder")


def _job(line: dict[str, Any]) -> Job:
    return Job(line["model"], line["task"], line["seed"])


def _lines(settings: Finetune, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """The result of each job, in the order in which the jobs end."""
    if settings.workers == 1:
        yield from (_one(settings, job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a forked child could not use a GPU
    threads = max(1, torch.get_num_threads() // settings.workers)
    with ProcessPoolExecutor(settings.workers, context, torch.set_num_threads, (threads,)) as pool:
        try:
            for future in as_completed([pool.submit(_one, settings, job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _one(settings: Finetune, job: Job) -> dict[str, Any]:
    """Do one run, and write its checkpoint where settings.keep asks for it."""
    started = time.monotonic()
    device = find_device(settings.device)
    start = open_model(job.model)
    task = tasks_of(settings)[job.task]
    train, scored = _splits(settings, task, start, device)
    if device.type == "cpu":
        _check_memory(settings, start, task, train)
    encoder, loss, steps = finetune(start.encoder(), train, task.kind, settings, seed=job.seed, device=device)
    predictions = predict(encoder, scored, task.kind)
    if settings.keep:
        several = (len(settings.models) > 1, len(tasks_of(settings)) > 1, settings.seeds > 1)
        name = short_names(settings.models)[job.model]
        parts = [part for part, differs in zip((name, job.task, f"seed-{job.seed}"), several, strict=True) if differs]
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = Path(scratch, "tokenizer.json")
            tokenizer.write_bytes(start.tokenizer_json)
            encoders.save(encoder, Path(settings.out, *parts), stored=settings.stored, tokenizer=tokenizer)
    metrics = {metric: round(value, 3) for metric, value in score(task, predictions, scored.examples.targets).items()}
    line = job._asdict() | {"metrics": metrics, "loss": round(loss, 5), "steps": steps, "seconds": round(time.monotonic() - started, 1)}
    return line | {"predictions": [round(p, 4) for p in predictions]} if task.kind in ("classes", "score") else line


def _check_memory(settings: Finetune, start: Start, task: Task, train: Split) -> None:
    """Print how much memory a run takes. Raises InputError as memory.check does."""
    config = dataclasses.replace(start.config, tasks=head(start.config, task.kind, train.examples.labels))
    length, rows = padded_length(train.lengths), min(settings.batch, len(train.lengths))
    length = min(length, config.positions.max)

    def batch(count: int) -> tuple[Any, ...]:
        ids = torch.zeros(count, length, dtype=torch.int64)
        side = (ids, torch.ones(count, length, dtype=torch.bool), ids if config.token_types else None)
        targets = torch.zeros((count, length) if task.kind == "tags" else count, dtype=train.targets.dtype)
        return (side,) * len(train.sides), targets

    line = memory.check(
        lambda: Labelled(encoders.Encoder(config, settings.dropout), task.kind),
        lambda parts: [(-(-rows // parts), batch)],
        rows=rows,
        accumulate=settings.accumulate,
        size=("batch", settings.batch),
        memory=settings.memory,
        processes=settings.workers,
        bfloat16=bool(settings.bfloat16),
    )
    if [line] != _SAID:
        _SAID[:] = [line]
        tqdm.write(line)


_SAID: list[str] = []  # the last line about memory, which several runs would repeat
_SPLITS: dict[tuple, tuple[Split, Split]] = {}


def _splits(settings: Finetune, task: Task, start: Start, device: torch.device) -> tuple[Split, Split]:
    """(the split to train on, the split to score), kept for other models with the same tokenizer."""
    config, tokenizer = start.config, start.tokenizer
    key = (settings, task.name, tokenizer.raw.to_str(), config.max_tokens, config.token_types)
    if key not in _SPLITS:
        train = task.read(settings.data, "train")
        scored = task.read(settings.data, task.scored, train.labels)
        _SPLITS[key] = tuple(Split.make(examples, task.kind, tokenizer, device) for examples in (train, scored))
    return _SPLITS[key]
