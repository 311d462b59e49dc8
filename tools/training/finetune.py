"""train.py finetune, one run: a checkpoint and a data set in, an encoder with a head for the data set out.

Classes and scores get a classify head (pooling, a layer with tanh, one linear layer), tags a tag head; pairs train the embed head to find
each text's partner among those of its batch. The weights after the last step count: none are chosen by their score. study.py does many
runs.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from fastinfer.config import Classify, Config, Embed, HeadLayer, Tag, Tasks
from fastinfer.errors import InputError, near
from fastinfer.evaluation.tasks import METRICS_OF, TASKS, Kind, Task, own_task
from training.encoder import Encoder, kept
from training.labelled import Epochs, Split, padded_length
from training.loop import Descent, fit
from training.objectives import Labelled, embed
from training.recipe import option
from training.report import SHOWN_EVERY
from training.workers import Workers

KINDS = [kind for kind in METRICS_OF if kind != "masks"]
TRAINABLE = [name for name, task in TASKS.items() if "train" in task.files]


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune checkpoints on labelled data, with a head for it. Each combination of model, task and seed is a run."""

    models: tuple[str, ...] = option(
        help="models to start from, which fastinfer.load opens: folders, models inside fastinfer, names on the hub; the others are "
        "compared with the first one"
    )
    out: str = option(help="folder for the checkpoint; several runs get a folder each in it, named by what tells them apart")
    tasks: tuple[str, ...] = option((), f"data sets by name: {', '.join(TRAINABLE)}")
    data: str = option(".", "folder that holds the data sets as they are published")
    train: str | None = option(None, "in place of tasks, a file of your own to train on: .csv, .tsv, .jsonl, or .conll for tags")
    dev: str | None = option(None, "the file that is scored, with train")
    kind: str = option("classes", "kind of the files: classes, score, tags or pairs")
    text: str = option("text", "column of the text")
    pair: str | None = option(None, "column of the second text of a pair")
    target: str = option("label", "column of the label or score")
    seeds: int = option(1, "runs of each model and task, with the seeds from 0 on")
    epochs: float = option(4.0, "times that the training data is read")
    max_steps: int = option(2500, "largest number of steps, whatever epochs says")
    batch: int = option(64, "texts in a batch")
    accumulate: int = option(1, "parts that a batch is computed in, one after the other, which takes less memory")
    memory: float | None = option(None, "GB of memory that a run on a CPU may take (default: those that are available)")
    lr: float = option(1e-4, "peak learning rate of feedforwards")
    lr_rest: float = option(1e-4, "peak learning rate of everything else")
    warmup: float = option(0.1, "share of the steps until the learning rate's peak; then it follows a cosine to zero")
    weight_decay: float = option(0.01, "weight decay of AdamW, for matrices and trees")
    clip: float = option(1.0, "largest norm of the gradient")
    dropout: float = option(0.1, "share of the embeddings, and of what each block adds, that is dropped in training")
    device: str = option("auto", "cpu, cuda, or auto: a GPU where there is one")
    bfloat16: bool | None = option(None, "autocast to bfloat16 in training (default: on a GPU)")
    workers: int = option(1, "runs at the same time, each in a process of its own")
    keep: bool = option(True, "write the checkpoints, not only the scores")
    stored: str = option("float32", "dtype of the checkpoints: float32, float16, bfloat16 or int8")


def tasks_of(settings: Finetune) -> dict[str, Task]:
    """{name: task} of the settings: the named data sets, or the user's own files. Raises InputError for settings that name neither."""
    if bool(settings.tasks) == bool(settings.train):
        raise InputError("name tasks, or a file to train on (train): one of the two")
    if settings.train:
        if not settings.dev:
            raise InputError(f"dev is missing: the file that is scored, beside {settings.train} to train on")
        if settings.kind not in KINDS:
            raise InputError(f"kind is {settings.kind!r}, expected {', '.join(KINDS)}{near(settings.kind, KINDS)}")
        if settings.kind == "pairs" and not settings.pair:
            raise InputError("pair is missing: the column of the text that belongs to the one in column text")
        files = {"train": settings.train, "dev": settings.dev}
        own = own_task(settings.kind, files, text=settings.text, pair=settings.pair, target=settings.target)
        return {own.name: own}
    odd = [name for name in settings.tasks if name not in TASKS or "train" not in TASKS[name].files]
    if odd:
        raise InputError(f"no training data is known for {', '.join(odd)}; it is for {', '.join(TRAINABLE)}{near(odd[0], TRAINABLE)}")
    return {name: TASKS[name] for name in settings.tasks}


def head(config: Config, kind: Kind, labels: tuple[str, ...]) -> Tasks:
    """The head that a task of this kind needs."""
    pooling = config.tasks.embed.poolings[0] if config.tasks.embed else "mean"
    if kind == "tags":
        return Tasks(tag=Tag(labels))
    if kind == "pairs":
        return Tasks(embed=config.tasks.embed or Embed("mean", True))
    output = "identity" if kind == "score" else "softmax"
    return Tasks(classify=Classify(labels, output, pooling, (HeadLayer(config.hidden, "tanh"),)))


class _Losses:
    """Watches the loop: keeps the losses of a known number of steps, and shows a progress bar."""

    def __init__(self, descent: Descent, steps: int, *, show: bool) -> None:
        self.descent, self.steps = descent, steps
        self.losses = torch.zeros(steps, device=descent.workers.device)
        self.bar = tqdm(total=steps, unit="step", leave=False, disable=not (show and sys.stderr.isatty()))
        self.shown = 0.0

    def share(self) -> float:
        """The part of the steps that is done."""
        return self.descent.step / self.steps

    def after_step(self, losses: dict[str, Tensor]) -> None:
        """Keep the loss where it lies, so that a GPU is waited for once a second at most."""
        self.losses[self.descent.step - 1] = losses["loss"].detach()
        if not self.bar.disable and time.monotonic() - self.shown > SHOWN_EVERY:
            self.shown = time.monotonic()
            self.bar.set_postfix_str(f"loss {float(losses['loss']):.4g}", refresh=False)
        self.bar.update()


def finetune(
    start: Encoder, train: Split, kind: Kind, settings: Finetune, *, seed: int, device: torch.device
) -> tuple[Encoder, float, int]:
    """Train a copy of `start`, with a fresh head.

    The result is the encoder on `device`, in evaluation mode, the mean loss of the last tenth of the steps, and the number of steps.

    Raises InputError where the loss is not finite.
    """
    torch.manual_seed(seed)
    config = dataclasses.replace(start.config, tasks=head(start.config, kind, train.examples.labels))
    encoder = Encoder(config, settings.dropout)
    encoder.load_state_dict(encoder.state_dict() | kept(start.state_dict(), config))
    targets, mean, spread = train.targets, 0.0, 1.0
    if kind == "score":  # the head learns standardised scores; their scale is put into its weights at the end
        mean, spread = float(targets.mean()), float(targets.std(correction=0)) or 1.0
        targets = (targets - mean) / spread

    data = Epochs(train, targets, settings.batch, np.random.default_rng(seed))
    steps = max(1, min(settings.max_steps, round(settings.epochs * data.count)))
    alone = Workers(0, 1, device)  # each run trains in one process
    descent = Descent(Labelled(encoder, kind), settings, alone, warmup=round(settings.warmup * steps))
    watcher = _Losses(descent, steps, show=settings.workers == 1)
    fit(descent, data, watcher)
    watcher.bar.close()
    final = float(watcher.losses[-max(1, steps // 10) :].mean())
    if not math.isfinite(final):
        raise InputError(
            f"the loss of fine-tuning is {final} after {steps} steps: lower lr and lr_rest, now {settings.lr} and {settings.lr_rest}"
        )
    if kind == "score":
        with torch.no_grad():
            out = encoder.tasks["classify"].out
            out.weight *= spread
            out.bias.copy_(out.bias * spread + mean)
    return encoder.eval(), final, steps


@torch.inference_mode()
def predict(encoder: Encoder, split: Split, kind: Kind, *, size: int = 64) -> list:
    """The encoder's answers to a split, computed in float32, as metrics.score wants them; `size` texts at a time."""
    lengths, answers = split.lengths, [None] * len(split.examples)
    device = split.targets.device
    vectors: list[list[Any]] = [[None] * len(answers) for _ in split.sides]
    order = np.argsort(lengths, kind="stable")
    for some in np.split(order, range(size, len(order), size)):
        rows, length = torch.from_numpy(some).to(device), padded_length(lengths[some])
        if kind == "pairs":
            for made, side in zip(vectors, split.sides, strict=True):
                for row, vector in zip(some, F.normalize(embed(encoder, *side.take(rows, length)), dim=-1).cpu(), strict=True):
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
