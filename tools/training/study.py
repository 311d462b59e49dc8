"""train.py finetune: a run for each model, task and seed, some of them at the same time; the results are kept line by line."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fastinfer.config import Config
from fastinfer.errors import CheckpointError, InputError
from fastinfer.evaluation.metrics import score
from fastinfer.evaluation.table import short_names
from fastinfer.evaluation.tasks import Task
from fastinfer.tokenizer import Tokenizer
from training import encoder as encoders
from training.comparison import plot, table
from training.encoder import Encoder
from training.finetune import Finetune, finetune, predict, tasks_of
from training.labelled import Split
from training.workers import find_device

RESULTS, PLOT = "results.jsonl", "plot.svg"


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
    small = [f"{name} is {value}" for name in ("seeds", "workers", "batch", "max_steps") if (value := getattr(settings, name)) < 1]
    if small or settings.epochs <= 0:
        raise InputError(f"{small[0] if small else f'epochs is {settings.epochs}'}, expected a positive number")
    jobs = [Job(*job) for job in itertools.product(settings.models, named, range(settings.seeds))]
    path = Path(settings.out) / RESULTS
    if path.exists() and not resume:
        raise InputError(f"{settings.out} holds results already: go on with them by --resume, or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {_job(line): line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}
    left = sorted((job for job in jobs if job not in done), key=lambda job: list(named).index(job.task))
    with open(path, "a") as file, tqdm(total=len(jobs), initial=len(jobs) - len(left), unit="run") as bar:
        for line in _lines(settings, left):
            done[_job(line)] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
            metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in line["metrics"].items())
            bar.set_postfix_str(f"{short_names(settings.models)[line['model']]}, {line['task']}: {metrics}", refresh=False)
            bar.update()
    return [done[job] for job in jobs]


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
    start, tokenizer = _open(job.model)
    task = tasks_of(settings)[job.task]
    train, scored = _splits(settings, task, start.config, tokenizer, device)
    encoder, loss = finetune(start, train, task.kind, settings, seed=job.seed, device=device)
    predictions = predict(encoder, scored, task.kind)
    if settings.keep:
        several = (len(settings.models) > 1, len(tasks_of(settings)) > 1, settings.seeds > 1)
        name = short_names(settings.models)[job.model]
        parts = [part for part, differs in zip((name, job.task, f"seed-{job.seed}"), several, strict=True) if differs]
        encoders.save(encoder, Path(settings.out, *parts), stored=settings.stored, tokenizer=Path(job.model) / "tokenizer.json")
    metrics = {metric: round(value, 3) for metric, value in score(task, predictions, scored.examples.targets).items()}
    line = job._asdict() | {"metrics": metrics, "loss": round(loss, 5), "seconds": round(time.monotonic() - started, 1)}
    return line | {"predictions": [round(p, 4) for p in predictions]} if task.kind in ("classes", "score") else line


@functools.cache
def _open(model: str) -> tuple[Encoder, Tokenizer]:
    """The encoder and the tokenizer of a checkpoint folder, kept for other runs from it."""
    path = Path(model) / "tokenizer.json"
    start = encoders.load(model)
    if not path.exists():
        raise CheckpointError(f"{model} has no tokenizer.json, which fine-tuning needs to read text: put it there")
    return start, Tokenizer(path, start.config)


_SPLITS: dict[tuple, tuple[Split, Split]] = {}


def _splits(settings: Finetune, task: Task, config: Config, tokenizer: Tokenizer, device: torch.device) -> tuple[Split, Split]:
    """(the split to train on, the split to score), kept for other models with the same tokenizer."""
    key = (settings, task.name, tokenizer.raw.to_str(), config.max_tokens, config.token_types)
    if key not in _SPLITS:
        train = task.read(settings.data, "train")
        scored = task.read(settings.data, task.scored, train.labels)
        _SPLITS[key] = tuple(Split.make(examples, task.kind, tokenizer, device) for examples in (train, scored))
    return _SPLITS[key]
