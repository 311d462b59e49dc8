"""The body of `train.py finetune`: a checkpoint and a data set in, a checkpoint with a head for it and its score out.

    python tools/train.py finetune --models .models/fast --tasks SST-2 --data data --out .models/sst2
    python tools/train.py finetune --models .models/fast --train reviews.csv --dev more.csv --text review --target stars --out .models/stars

Classes and scores get a classify head (pooling, a layer with tanh, one linear layer), tags a tag head; pairs train the embed
head to find each text's partner among those of its batch. Many models, tasks and seeds may run in one call, some at a time: that
is how shapes are compared. The weights after the last step count; nothing is chosen by the score.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import fff_torch
import numpy as np
import torch
import torch.nn.functional as F
from fff_torch import Encoder
from loop import Workers, make_optimizer
from recipe import option
from tasks import GLUE, METRICS_OF, NOT_HAD, TASKS, Examples, Kind, Task, first_rows, own_task, score, short_names
from torch import Tensor
from tqdm import tqdm

from fastinfer.config import Classify, Config, Embed, HeadLayer, Tag, Tasks
from fastinfer.errors import CheckpointError, InputError
from fastinfer.tokenizer import Tokenizer

RESULTS, PLOT = "results.jsonl", "plot.svg"
WINDOW = 50  # batches whose texts are sorted by length together
MULTIPLE = 8  # lengths are padded to multiples of it
SHARPNESS = 20.0  # of cosines, before the softmax over a batch's partners
IGNORED = -100  # target of tokens that no tag belongs to; what cross_entropy leaves out
DRAWS = 400  # of the bootstrap
TRAINABLE = [name for name, task in TASKS.items() if "train" in task.files]


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Checkpoints and labelled data into checkpoints with a head for it. Each model, task and seed is a run."""

    models: tuple[str, ...] = option(help="checkpoint folders to start from; the first one is what others are compared with")
    out: str = option(help="folder for what is made: of one run the checkpoint; of several, folders named by what tells them apart")
    tasks: tuple[str, ...] = option((), f"data sets, of {', '.join(TRAINABLE)}")
    data: str = option(".", "folder in which the data sets lie as they are published")
    train: str | None = option(None, "instead of tasks: a file of your own, .csv, .tsv, .jsonl, or .conll for tags")
    dev: str | None = option(None, "and the one that is scored")
    kind: str = option("classes", "what the files hold: classes, score, tags or pairs")
    text: str = option("text", "column of the text")
    pair: str | None = option(None, "column of the second text of a pair")
    target: str = option("label", "column of the label or score")
    seeds: int = option(1, "runs of each model and task, with the seeds from 0 on")
    epochs: float = option(4.0, "times that the data is read")
    max_steps: int = option(2500, "and the most steps")
    batch: int = option(64, "texts in a batch")
    lr: float = option(1e-4, "peak learning rate of feedforwards")
    lr_rest: float = option(1e-4, "peak learning rate of everything else")
    warmup: float = option(0.1, "part of the steps until the peak; then a cosine to zero")
    weight_decay: float = option(0.01, "of AdamW, on matrices and trees")
    clip: float = option(1.0, "largest norm of the gradient")
    dropout: float = option(0.1, "of embeddings and of what each block adds")
    device: str = option("auto", "cpu, cuda, or auto: a GPU where there is one")
    bfloat16: bool | None = option(None, "autocast to bfloat16 in training (default: on a GPU)")
    workers: int = option(1, "runs at a time, each in a process")
    keep: bool = option(True, "write the checkpoints, not the scores alone")
    stored: str = option("float32", "dtype of the checkpoints: float32, float16, bfloat16 or int8")


# --- data ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Texts as ids on a device, n rows.

    ids, types  (n, L) int32; types None where the model has no token types
    lengths     (n,) tokens of each, on the CPU
    words       of tags: per text, the row of each word's first token
    """

    ids: Tensor
    types: Tensor | None
    lengths: np.ndarray
    words: list[dict[int, int]] | None = None

    def take(self, rows: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """ids, mask, types (B, length) of some rows; narrower where no text of all is so long."""
        ids = self.ids[rows, :length].long()
        mask = torch.arange(ids.shape[1], device=ids.device) < self.sizes[rows, None]
        return ids, mask, None if self.types is None else self.types[rows, :length].long()

    @functools.cached_property
    def sizes(self) -> Tensor:
        return torch.from_numpy(self.lengths).to(self.ids.device)


def encode(texts: Sequence[Any], tokenizer: Tokenizer, device: torch.device, *, words: bool = False) -> Rows:
    """The engine's tokens of the texts: its tokenizer, its limit, its way to cut."""
    encodings = tokenizer.encode(texts, words=words)
    packed = tokenizer.batch(encodings)
    lengths = packed.lengths
    there = np.arange(_width(lengths)) < lengths[:, None]

    def padded(values: np.ndarray) -> Tensor:
        made = np.zeros(there.shape, np.int32)
        made[there] = values
        return torch.from_numpy(made).to(device)

    types = None if packed.token_types is None else padded(packed.token_types)
    return Rows(padded(packed.ids), types, lengths, [first_rows(e.word_ids) for e in encodings] if words else None)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a task, ready for a device. sides: one, or of pairs two; targets: what the loss wants."""

    sides: tuple[Rows, ...]
    targets: Tensor
    examples: Examples

    @classmethod
    def make(cls, examples: Examples, kind: Kind, tokenizer: Tokenizer, device: torch.device) -> Split:
        if kind == "pairs":
            sides = tuple(encode(side, tokenizer, device) for side in zip(*examples.inputs, strict=True))
            return cls(sides, torch.arange(len(examples), device=device), examples)
        rows = encode(examples.inputs, tokenizer, device, words=kind == "tags")
        if kind != "tags":
            return cls((rows,), torch.tensor(examples.targets, device=device), examples)
        index = {label: i for i, label in enumerate(examples.labels)}
        targets = np.full(rows.ids.shape, IGNORED)
        for made, firsts, labels in zip(targets, rows.words, examples.targets, strict=True):
            for word, row in firsts.items():
                made[row] = index[labels[word]]
        return cls((rows,), torch.from_numpy(targets).to(device), examples)

    @property
    def lengths(self) -> np.ndarray:
        return np.max([side.lengths for side in self.sides], axis=0)


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """(rows, padded length) of one epoch: all rows in random order, neighbours in a batch of similar length."""
    order = rng.permutation(len(lengths))
    made = []
    for start in range(0, len(order), WINDOW * size):
        window = order[start : start + WINDOW * size]
        window = window[np.argsort(lengths[window], kind="stable")]
        made += np.split(window, range(size, len(window), size))
    for i in rng.permutation(len(made)):
        yield made[i], _width(lengths[made[i]])


def _width(lengths: np.ndarray) -> int:
    return -(-int(lengths.max()) // MULTIPLE) * MULTIPLE


# --- one run ---------------------------------------------------------------------------------------


def head(config: Config, kind: Kind, labels: tuple[str, ...]) -> Tasks:
    """The head that a task of this kind wants."""
    pooling = config.tasks.embed.pooling if config.tasks.embed else "mean"
    if kind == "tags":
        return Tasks(tag=Tag(labels))
    if kind == "pairs":
        return Tasks(embed=config.tasks.embed or Embed("mean", True))
    output = "identity" if kind == "score" else "softmax"
    return Tasks(classify=Classify(labels, output, pooling, (HeadLayer(config.hidden, "tanh"),)))


def finetune(start: Encoder, train: Split, kind: Kind, settings: Finetune, *, seed: int, device: torch.device) -> tuple[Encoder, float]:
    """Train a copy of `start`, with a fresh head: (the encoder on `device`, in evaluation mode; the mean loss of the last tenth of steps).

    Raises InputError where the loss is not finite.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = dataclasses.replace(start.config, tasks=head(start.config, kind, train.examples.labels))
    encoder = Encoder(config, settings.dropout)
    encoder.load_state_dict(encoder.state_dict() | {n: w for n, w in start.state_dict().items() if not n.startswith("tasks.")})
    encoder.to(device).train()
    optimizer = make_optimizer(encoder, settings, fused=device.type == "cuda")
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    targets, mean, spread = train.targets, 0.0, 1.0
    if kind == "score":  # the head learns standardised scores; their scale is put into its weights at the end
        mean, spread = float(targets.mean()), float(targets.std(correction=0)) or 1.0
        targets = (targets - mean) / spread

    lengths = train.lengths
    epoch = -(-len(lengths) // settings.batch)
    steps = max(1, min(settings.max_steps, round(settings.epochs * epoch)))
    ramp = max(1, round(settings.warmup * steps))
    bfloat16 = device.type == "cuda" if settings.bfloat16 is None else settings.bfloat16
    losses = torch.zeros(steps, device=device)
    step, bar = 0, tqdm(total=steps, unit="step", leave=False, disable=settings.workers > 1)
    while step < steps:
        order = list(batches(lengths, settings.batch, rng))
        rows = torch.from_numpy(np.concatenate([some for some, _ in order])).to(device)  # one transfer an epoch, none a step
        for (_, length), chosen in zip(order, rows.split([len(some) for some, _ in order]), strict=True):
            factor = min(1, (step + 1) / ramp) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                value = _loss(encoder, kind, train.sides, targets, chosen, length)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.clip)
            optimizer.step()
            losses[step] = value.detach()
            step += 1
            bar.update()
            if step == steps:
                break
    bar.close()
    final = float(losses[-max(1, steps // 10) :].mean())
    if not math.isfinite(final):
        raise InputError(
            f"the loss of fine-tuning is {final} after {steps} steps: lower lr and lr_rest, now {settings.lr} and {settings.lr_rest}"
        )
    if kind == "score":
        with torch.no_grad():
            out = encoder.tasks["classify"].out
            out.weight *= spread
            out.bias.copy_(out.bias * spread + mean)
    return encoder.eval(), final


def _loss(encoder: Encoder, kind: Kind, sides: tuple[Rows, ...], targets: Tensor, rows: Tensor, length: int) -> Tensor:
    if kind == "pairs":
        first, second = (F.normalize(_embed(encoder, side, rows, length), dim=-1) for side in sides)
        return F.cross_entropy(SHARPNESS * first @ second.T, torch.arange(len(rows), device=rows.device))
    ids, mask, types = sides[0].take(rows, length)
    states = encoder(ids, mask, types)[-1]
    if kind == "tags":
        return F.cross_entropy(encoder.tag(states).float().flatten(0, 1), targets[rows, :length].flatten(), ignore_index=IGNORED)
    logits = encoder.classify(states, mask).float()
    return F.mse_loss(logits[:, 0], targets[rows].float()) if kind == "score" else F.cross_entropy(logits, targets[rows])


def _embed(encoder: Encoder, side: Rows, rows: Tensor, length: int) -> Tensor:
    ids, mask, types = side.take(rows, length)
    return encoder.embed(encoder(ids, mask, types)[-1], mask)


@torch.inference_mode()
def predict(encoder: Encoder, split: Split, kind: Kind, *, size: int = 64) -> list:
    """The encoder's answers in float32, as tasks.score wants them."""
    lengths, answers = split.lengths, [None] * len(split.examples)
    device = split.targets.device
    vectors: list[list[Any]] = [[None] * len(answers) for _ in split.sides]
    order = np.argsort(lengths, kind="stable")
    for some in np.split(order, range(size, len(order), size)):
        rows, length = torch.from_numpy(some).to(device), _width(lengths[some])
        if kind == "pairs":
            for made, side in zip(vectors, split.sides, strict=True):
                for row, vector in zip(some, F.normalize(_embed(encoder, side, rows, length), dim=-1).cpu(), strict=True):
                    made[row] = vector
            continue
        rows_of = split.sides[0]
        ids, mask, types = rows_of.take(rows, length)
        states = encoder(ids, mask, types)[-1]
        if kind == "tags":
            for row, best in zip(some, encoder.tag(states).argmax(-1).cpu().numpy(), strict=True):
                answers[row] = ["O"] * len(split.examples.inputs[row])
                for word, at in rows_of.words[row].items():
                    answers[row][word] = split.examples.labels[best[at]]
            continue
        logits = encoder.classify(states, mask)
        for row, value in zip(some, (logits[:, 0] if kind == "score" else logits.argmax(1)).tolist(), strict=True):
            answers[row] = value
    if kind == "pairs":
        first, second = (torch.stack(made) for made in vectors)
        return (first @ second.T).argmax(1).tolist()
    return answers


# --- many runs -------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A run: the folder of a model, the name of a task, a seed."""

    model: str
    task: str
    seed: int


def run(settings: Finetune, resume: bool) -> None:
    """Fine-tune as `settings` say; print what came of it, and draw it into OUT/plot.svg."""
    lines = results(settings, resume)
    plot(settings, lines, Path(settings.out) / PLOT)
    print(table(settings, lines))


def results(settings: Finetune, resume: bool = False) -> list[dict[str, Any]]:
    """Fine-tune every model on every task with every seed: a dict per run, the lines of OUT/results.jsonl, in the order of the jobs.

    resume  leave out the runs that results.jsonl holds already

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


def tasks_of(settings: Finetune) -> dict[str, Task]:
    """{name: task} of the settings: the named data sets, or the files of one's own. Raises InputError."""
    if bool(settings.tasks) == bool(settings.train):
        raise InputError("name tasks, or a file to train on (train): one of the two")
    if settings.train:
        if not settings.dev:
            raise InputError(f"dev is missing: the file that is scored, beside {settings.train} to train on")
        if settings.kind not in METRICS_OF:
            raise InputError(f"kind is {settings.kind!r}, expected {', '.join(METRICS_OF)}")
        if settings.kind == "pairs" and not settings.pair:
            raise InputError("pair is missing: the column of the text that belongs to the one in column text")
        files = {"train": settings.train, "dev": settings.dev}
        own = own_task(settings.kind, files, text=settings.text, pair=settings.pair, target=settings.target)
        return {own.name: own}
    odd = [name for name in settings.tasks if name not in TASKS or "train" not in TASKS[name].files]
    if odd:
        raise InputError(f"no training data is known for {', '.join(odd)}; it is for {', '.join(TRAINABLE)}")
    return {name: TASKS[name] for name in settings.tasks}


def _job(line: dict[str, Any]) -> Job:
    return Job(line["model"], line["task"], line["seed"])


def _lines(settings: Finetune, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """The results, as they come."""
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
    """Do one run; keep its checkpoint, where that is wanted."""
    started = time.monotonic()
    device = Workers.start(settings.device).device
    start, tokenizer = _open(job.model)
    task = tasks_of(settings)[job.task]
    train, scored = _splits(settings, task, start.config, tokenizer, device)
    encoder, loss = finetune(start, train, task.kind, settings, seed=job.seed, device=device)
    predictions = predict(encoder, scored, task.kind)
    if settings.keep:
        several = (len(settings.models) > 1, len(tasks_of(settings)) > 1, settings.seeds > 1)
        name = short_names(settings.models)[job.model]
        parts = [part for part, differs in zip((name, job.task, f"seed-{job.seed}"), several, strict=True) if differs]
        fff_torch.save(encoder, Path(settings.out, *parts), stored=settings.stored, tokenizer=Path(job.model) / "tokenizer.json")
    metrics = {metric: round(value, 3) for metric, value in score(task, predictions, scored.examples.targets).items()}
    line = job._asdict() | {"metrics": metrics, "loss": round(loss, 5), "seconds": round(time.monotonic() - started, 1)}
    return line | {"predictions": [round(p, 4) for p in predictions]} if task.kind in ("classes", "score") else line


@functools.cache
def _open(model: str) -> tuple[Encoder, Tokenizer]:
    path = Path(model) / "tokenizer.json"
    start = fff_torch.load(model)
    if not path.exists():
        raise CheckpointError(f"{model} has no tokenizer.json, which fine-tuning needs to read text: put it there")
    return start, Tokenizer(path, start.config)


_SPLITS: dict[tuple, tuple[Split, Split]] = {}


def _splits(settings: Finetune, task: Task, config: Config, tokenizer: Tokenizer, device: torch.device) -> tuple[Split, Split]:
    """(to train on, to be scored), kept for other models of the same tokenizer."""
    key = (settings, task.name, tokenizer.raw.to_str(), config.max_tokens, config.token_types)
    if key not in _SPLITS:
        train = task.read(settings.data, "train")
        scored = task.read(settings.data, task.scored, train.labels)
        _SPLITS[key] = tuple(Split.make(examples, task.kind, tokenizer, device) for examples in (train, scored))
    return _SPLITS[key]


# --- what came of it -------------------------------------------------------------------------------


def table(settings: Finetune, lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: per model and task the median over the seeds and the extremes; of GLUE the averages, and what others keep of the first's.

    A task's score is the mean of its metrics. An average is one of medians. Retention is its ratio to the first model's, with the
    middle 95% of what comes out when seeds (per model) and examples (the same for all models) are drawn with replacement.
    """
    named = tasks_of(settings)
    scores: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        scores.setdefault((line["model"], line["task"]), []).append(_mean(line["metrics"]))
    averages = {}
    if len(named) > 1 and named.keys() <= GLUE.keys():
        averages["average"] = list(named)
        if "CoLA" in named:
            averages["without CoLA"] = [t for t in named if t != "CoLA"]
    kept = _retention(settings, lines, averages) if len(settings.models) > 1 and averages else {}
    heads = ["model", *named, *averages, *(f"retention, {name}" for name in averages if kept)]
    rows = [heads, ["---"] * len(heads)]
    for model in settings.models:
        medians = {t: float(np.median(scores[model, t])) for t in named}
        spread = {t: f" ({min(scores[model, t]):.1f}..{max(scores[model, t]):.1f})" if settings.seeds > 1 else "" for t in named}
        cells = [f"{medians[t]:.1f}{spread[t]}" for t in named]
        cells += [f"{np.mean([medians[t] for t in some]):.1f}" for some in averages.values()]
        cells += [kept.get((model, name), "") for name in averages if kept]
        rows.append([short_names(settings.models)[model], *cells])
    note = f"\n\nMedian of {settings.seeds} seeds (lowest..highest)." if settings.seeds > 1 else "\n\nOne seed."
    note += f" Of GLUE, {NOT_HAD}." if named.keys() & GLUE.keys() else ""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + note


def plot(settings: Finetune, lines: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel per task: a dot per seed, a bar at the median, model by model."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    named, names = tasks_of(settings), short_names(settings.models)
    figure, panels = pyplot.subplots(1, len(named), figsize=(1 + 2.5 * len(named), 3.5), squeeze=False)
    for axes, task in zip(panels[0], named, strict=True):
        for x, model in enumerate(settings.models):
            scores = [_mean(line["metrics"]) for line in lines if (line["model"], line["task"]) == (model, task)]
            axes.plot([x] * len(scores), scores, "o", color=f"C{x}", alpha=0.5)
            axes.plot([x - 0.3, x + 0.3], [np.median(scores)] * 2, color=f"C{x}")
        axes.set(title=task, ylabel="score" if axes is panels[0][0] else "")
        axes.set_xticks(range(len(settings.models)), [names[model] for model in settings.models], rotation=45, ha="right")
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)


def _retention(settings: Finetune, lines: Sequence[dict[str, Any]], averages: dict[str, list[str]]) -> dict[tuple[str, str], str]:
    """{(model, average): "percent [low, high]"} against the first model."""
    named, rng = tasks_of(settings), np.random.default_rng(0)
    targets = {t: np.array(task.read(settings.data, task.scored).targets) for t, task in named.items()}
    said = {(line["model"], line["task"], line["seed"]): np.array(line["predictions"]) for line in lines}

    def medians(seeds: dict[str, np.ndarray], rows: dict[str, Any]) -> dict[tuple[str, str], float]:
        found = {}
        for m, t in itertools.product(settings.models, named):
            each = {s: _mean(score(named[t], said[m, t, s][rows[t]], targets[t][rows[t]])) for s in set(seeds[m].tolist())}
            found[m, t] = float(np.median([each[s] for s in seeds[m].tolist()]))
        return found

    def ratios(found: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        mean = {(m, name): np.mean([found[m, t] for t in some]) for m in settings.models for name, some in averages.items()}
        return {(m, name): 100 * value / mean[settings.models[0], name] for (m, name), value in mean.items()}

    drawn = []
    for _ in tqdm(range(DRAWS), desc="intervals of retention"):
        seeds = {m: rng.integers(settings.seeds, size=settings.seeds) for m in settings.models}
        drawn.append(ratios(medians(seeds, {t: rng.integers(len(y), size=len(y)) for t, y in targets.items()})))
    whole = ratios(medians(dict.fromkeys(settings.models, np.arange(settings.seeds)), dict.fromkeys(named, slice(None))))
    shown = {}
    for key, value in whole.items():
        low, high = np.percentile([draw[key] for draw in drawn], [2.5, 97.5])
        shown[key] = f"{value:.1f}% [{low:.1f}, {high:.1f}]" if key[0] != settings.models[0] else ""
    return shown


def _mean(metrics: dict[str, float]) -> float:
    return sum(metrics.values()) / len(metrics)
