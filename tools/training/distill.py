"""train.py distill: a sentence embedder, or any BERT, into the same encoder with other feedforwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastinfer import checkpoint
from fastinfer.config import FFF, Config, Dense, Embed, Gated, Ids, Tasks
from fastinfer.errors import ConfigError, InputError
from fastinfer.evaluation.tasks import GLUE
from training import corpus, grow, runs
from training.beside import Beside, Second, same_tokens
from training.encoder import Encoder, kept
from training.feedforward import Feedforward
from training.memory import Batch
from training.objectives import Distillation
from training.recipe import option
from training.start import Start, open_encoder, open_model
from training.workers import Workers

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens: the lengths that the rows of a batch are padded to


@dataclasses.dataclass(frozen=True)
class Distill(runs.Training):
    """Distil a sentence embedder, or any BERT, into the same encoder with other feedforwards."""

    teacher: str | None = option(
        None, "the teacher, which fastinfer.load opens: a folder, the name of a model inside fastinfer, or a name on the hub"
    )
    beside: str | None = option(
        None, "a second teacher, an embedder with the same tokens, named as the teacher is: embeddings are then learned from both"
    )
    max_tokens: int | None = option(None, "tokens of the longest text trained on (default: the teacher's limit)")
    layers: str | None = option(None, 'the teacher\'s layers that the student has, from 0, as "0,2,4" (default: all)')
    hidden_weight: float = option(1.0, "weight of the hidden states' error")
    fade: float = option(0.0, "last part of the run, from 0 to 1, over which the weight of the hidden states' error falls to zero")
    soft: float = option(
        0.0,
        "temperature of the decisions at the start of the run: tokens take both ways by their shares, until it is zero, at half of the run",
    )
    embed_weight: float = option(10.0, "weight of 1 - cosine of the embeddings, where the teacher is an embedder")
    similarity_weight: float = option(100.0, "weight of the squared error of the similarities in a batch, where the teacher is an embedder")
    copy: bool = option(False, "start the always-on neurons as copies of the teacher's strongest neurons")
    grow: int | None = option(
        None,
        "start all neurons from the teacher's, as this many tokens of the text use them, such as 65536: those that are always on, and "
        "those of trees, whose decisions are grown from the root; copy then does nothing more",
    )
    start: str | None = option(
        None, "an earlier student to go on from, named as the teacher is; of its always-on neurons, the strongest are kept"
    )
    sts: str | None = option(None, "folder with STS-B/dev.tsv, on which an embedder is scored at each validation")


class Pieces:
    """Pieces of text, in batches of nearly equal length: the Data of distill."""

    def __init__(self, corpora: tuple[corpus.Corpus, corpus.Corpus], settings: Distill, longest: int, ids: Ids, workers: Workers) -> None:
        self.settings, self.ids, self.workers = settings, ids, workers
        self.lengths = [n for n in LENGTHS if n < longest] + [longest]
        self.sources = [self._source(found, longest, workers.device) for found in corpora]

    def _source(self, found: corpus.Corpus, longest: int, device: torch.device) -> tuple[Tensor, Tensor, list[np.ndarray], np.ndarray]:
        """(ids, (begin, end) of the pieces in them, the numbers of the pieces of each length, the share of the tokens of each length)."""
        begin, end = found.pieces(longest - 2)
        kind = np.searchsorted(self.lengths, end - begin + 2)
        numbers = [np.flatnonzero(kind == k) for k in range(len(self.lengths))]
        often = np.array([len(n) * length for n, length in zip(numbers, self.lengths, strict=True)], float)
        if not len(begin):
            raise InputError("the text has no pieces to train on or none to validate with: add text")
        padded = torch.from_numpy(np.concatenate([found.ids, np.zeros(longest, found.ids.dtype)]).astype(np.int32))
        return padded.to(device), torch.from_numpy(np.stack([begin, end])).to(device), numbers, often / often.sum()

    def batch(self, step: int, validation: bool = False) -> tuple[Tensor | None, ...]:
        """(ids (B, L), mask (B, L)) of this process."""
        rng = np.random.default_rng((self.settings.seed, step, validation))
        source, pieces, numbers, often = self.sources[validation]
        kind = rng.choice(len(often), p=often)
        length = self.lengths[kind]
        count = max(self.workers.world, self.settings.batch_tokens // length)
        chosen = torch.from_numpy(rng.choice(numbers[kind], count)[self.workers.rows(count)])
        if source.device.type == "cuda":  # a copy from pinned memory does not wait for the steps before
            chosen = chosen.pin_memory().to(source.device, non_blocking=True)
        begin, end = pieces[:, chosen, None]
        at = torch.arange(length, device=source.device)[None]
        size = end - begin  # a row: [CLS], `size` ids, [SEP], padding
        ids = source[begin + (at - 1).clamp(min=0)].long()
        ids = torch.where(at == 0, self.ids.cls, torch.where(at == size + 1, self.ids.sep, ids))
        mask = at < size + 2
        return torch.where(mask, ids, self.ids.pad or 0), mask


def distill(settings: Distill, resume: bool) -> None:
    """Train a student of the teacher as `settings` say and export it."""
    if settings.teacher is None:
        raise InputError("distillation has no teacher: set teacher to a dense model, such as tools/get_model.py makes")
    if not 0 <= settings.fade <= 1:
        raise InputError(f"fade is {settings.fade}, expected a part of the run, from 0 to 1")
    runs.check_positive(settings, "grow")
    if settings.soft < 0:
        raise InputError(f"soft is {settings.soft}, expected a temperature of 0 or more")
    run, workers = runs.open_run(settings, resume, settings.teacher, settings.start, settings.beside)
    if settings.sts is not None:
        GLUE["STS-B"].read(settings.sts, "dev")
    opened = open_model(settings.teacher)
    config, ids = opened.config, opened.config.ids
    if ids.cls is None or ids.sep is None:
        raise ConfigError(f"{settings.teacher} has no token that begins a text and one that ends it: it is no BERT to learn from")
    longest = settings.max_tokens or config.max_tokens
    if not 8 <= longest <= config.positions.max:
        raise InputError(f"max_tokens is {longest}, expected 8 to {config.positions.max}, the teacher's positions")
    second = None if settings.beside is None else second_teacher(opened, open_model(settings.beside), longest)
    check_memory(settings, workers, config, longest, second)
    torch.manual_seed(settings.seed)
    teacher = opened.encoder()
    if workers.rank == 0:
        (run / "tokenizer.json").write_bytes(opened.tokenizer_json)
    workers.wait()
    tokenizer = corpus.read_tokenizer(run / "tokenizer.json")
    student = make_student(teacher, settings)
    corpora = corpus.read(settings.text, tokenizer, settings.cache and Path(settings.cache), progress=workers.rank == 0)
    data = Pieces(corpora, settings, longest, ids, workers)
    if settings.grow and not resume:
        grow_student(student, teacher, settings, data, workers.device)
    objective = make_objective(student, teacher, settings, second)
    if objective.beside is not None:
        objective.beside.fit(teacher, data.batch, workers)
    runs.train(objective, data, settings, workers, resume=resume, evaluate=sts_scorer(settings, tokenizer, teacher.config))


def second_teacher(first: Start, second: Start, longest: int) -> Second:
    """A second teacher of texts of at most `longest` tokens. Raises InputError where the two do not fit."""
    if first.config.tasks.embed is None:
        raise InputError(f"{first.name} has no embed head, so a second teacher beside it has nothing to add: leave beside out")
    if longest > second.config.positions.max:
        raise InputError(f"{second.name} reads at most {second.config.positions.max} tokens, not {longest}: lower max_tokens")
    return Second(second.encoder(), same_tokens(first, second))


def check_memory(settings: Distill, workers: Workers, config: Config, longest: int, second: Second | None) -> None:
    """runs.check_memory for a student of a teacher with this config, with the shortest and with the longest rows."""

    def batches(parts: int) -> list[Batch]:
        made = []
        for length in sorted({min(LENGTHS[0], longest), longest}):
            count = -(-max(1, settings.batch_tokens // length // workers.world) // parts)

            def batch(rows: int, length: int = length) -> tuple[Tensor, ...]:
                return torch.zeros(rows, length).long(), torch.ones(rows, length, dtype=torch.bool)

            made.append((count, batch))
        return made

    def make() -> Distillation:
        student = Encoder(student_config(config, settings))
        student.embedding.requires_grad_(False)
        return make_objective(student, Encoder(config), settings, second)

    runs.check_memory(settings, workers, make, batches, settings.batch_tokens // longest)


def kept_layers(teacher: Config, settings: Distill) -> list[int]:
    """The numbers of the teacher's layers that the student has. Raises InputError where settings.layers does not name some in order."""
    if settings.layers is None:
        return list(range(teacher.layers))
    parts = settings.layers.split(",")
    numbers = [int(part) for part in parts] if all(part.isdecimal() and part.isascii() for part in parts) else []
    if not numbers or numbers != sorted(set(numbers)) or numbers[-1] >= teacher.layers:
        raise InputError(
            f"layers is {settings.layers!r}, expected numbers of the teacher's layers, 0 to {teacher.layers - 1}, in order, such as "
            f'"{",".join(map(str, range(0, teacher.layers, 2)))}"'
        )
    return numbers


def make_objective(student: Encoder, teacher: Encoder, settings: Distill, second: Second | None = None) -> Distillation:
    """The losses of the student. A layer learns the state that the teacher hands to the layer from which the student's next one comes."""
    kept = kept_layers(teacher.config, settings)
    beside = None if second is None else Beside(second, teacher.config.tasks.embed.numbers(teacher.config.hidden))
    return Distillation(student, teacher, settings, [*kept[1:], teacher.config.layers], beside)


def student_config(teacher: Config, settings: Distill) -> Config:
    """The teacher's config with the settings' layers and feedforwards, and an embed head."""
    cut, tasks = config_of_layers(teacher, kept_layers(teacher, settings)), Tasks(embed=teacher.tasks.embed or Embed("mean", True))
    return dataclasses.replace(cut, ffn=(runs.parse_shape(settings.shape),) * cut.layers, tasks=tasks)


def config_of_layers(config: Config, numbers: Sequence[int]) -> Config:
    """The config of a model that has these layers alone."""
    ffn, attention = (tuple(each[i] for i in numbers) for each in (config.ffn, config.attention))
    return dataclasses.replace(config, layers=len(numbers), ffn=ffn, attention=attention)


def with_layers(encoder: Encoder, numbers: Sequence[int]) -> Encoder:
    """A copy of the encoder that has these layers alone."""
    copy = Encoder(config_of_layers(encoder.config, numbers))
    copy.load_state_dict(copy.state_dict() | {n: w for n, w in encoder.state_dict().items() if not n.startswith("layers.")})
    for mine, number in zip(copy.layers, numbers, strict=True):
        mine.load_state_dict(encoder.layers[number].state_dict())
    return copy


def make_student(teacher: Encoder, settings: Distill) -> Encoder:
    """The teacher with fresh feedforwards, or with the layers of settings.start. Its embeddings are frozen, rounded as when stored."""
    config = teacher.config
    student = Encoder(student_config(config, settings))
    teacher = with_layers(teacher, kept_layers(config, settings))
    known = {n: w for n, w in kept(teacher.state_dict(), student.config).items() if ".ffn." not in n or ".ffn.norm." in n}
    source = teacher if settings.start is None else earlier_student(student.config, settings)
    if source is not teacher:
        always_on = (".dense_in.", ".dense_out.")
        known |= {n: w for n, w in source.state_dict().items() if n.startswith("layers.") and not any(a in n for a in always_on)}
    student.load_state_dict(student.state_dict() | known)
    if settings.copy or settings.grow:
        check_neurons(config, student.config.ffn[0], "grow" if settings.grow else "copy")
    if settings.copy or source is not teacher:
        for mine, theirs in zip(student.layers, source.layers, strict=True):
            if mine.ffn.dense_in is not None:
                copy_strongest(mine.ffn, theirs.ffn)
    spec = checkpoint.tensors(student.config)
    for name, weight in student.embedding.named_parameters():
        weight.requires_grad_(False)
        if spec[f"embedding.{name}"].family != "vector":
            rounded = checkpoint.Tensor(weight.numpy(), "float32").to(settings.stored).float32()
            weight.copy_(torch.from_numpy(rounded))
    return student


def check_neurons(teacher: Config, ffn: Dense | Gated | FFF, name: str) -> None:
    """Raise InputError where a student with this feedforward cannot start from the teacher's neurons, which the setting `name` asks for."""
    if not all(isinstance(theirs, Dense) for theirs in teacher.ffn):
        found = " | ".join(dict.fromkeys(map(str, teacher.ffn)))
        raise InputError(f"{name} takes neurons from dense feedforwards, but the teacher has {found}: leave {name} out")
    if isinstance(ffn, Gated):
        raise InputError(f"{name} starts neurons without gates, but the shape is {ffn}: leave {name} out")
    most = min(theirs.width for theirs in teacher.ffn)
    used = ffn.width if isinstance(ffn, Dense) else ffn.dense + (ffn.trees * ffn.leaf if name == "grow" else 0)
    if used > most:
        raise InputError(
            f"{name} takes {used} of the teacher's neurons for a token, which has {most}: take a smaller shape, or leave it out"
        )


def grow_student(student: Encoder, teacher: Encoder, settings: Distill, data: Pieces, device: torch.device) -> None:
    """Start the student's feedforwards from those of the teacher's layers that it has."""
    tokens = grow.inputs(teacher, data, settings.grow, device)
    for layer, number in zip(student.to(device).layers, kept_layers(teacher.config, settings), strict=True):
        grow.grow(layer.ffn, teacher.layers[number].ffn, tokens[number])


def earlier_student(config: Config, settings: Distill) -> Encoder:
    """The checkpoint in settings.start. Raises InputError where it differs from `config` otherwise than by more always-on neurons."""
    start = open_encoder(settings.start)
    theirs, mine = start.config.ffn[0], config.ffn[0]
    fits = dataclasses.replace(start.config, ffn=config.ffn, tasks=config.tasks) == config and len(set(start.config.ffn)) == 1
    always_on = "width" if isinstance(mine, Dense) else "dense"
    fits = fits and isinstance(theirs, (Dense, FFF)) and type(theirs) is type(mine)
    count = getattr(mine, always_on, 0)
    if not fits or dataclasses.replace(theirs, **{always_on: count}) != mine or getattr(theirs, always_on) < count:
        raise InputError(
            f"start is {settings.start} with feedforwards {theirs}, expected a student of this teacher with {mine}, "
            "or with more neurons that are always on"
        )
    for name in ("copy", "grow"):
        if getattr(settings, name):
            raise InputError(f"start and {name} both say where the always-on neurons come from: leave one of the two out")
    return start


@torch.no_grad()
def copy_strongest(mine: Feedforward, theirs: Feedforward) -> None:
    """Copy into `mine` the output bias of `theirs` and its strongest always-on neurons: by the lengths of in-row times out-row."""
    strength = theirs.dense_in.weight.norm(dim=1) * theirs.dense_out.weight.norm(dim=0)
    best = strength.topk(len(mine.dense_in.weight)).indices
    mine.dense_in.weight.copy_(theirs.dense_in.weight[best])
    if theirs.dense_in.bias is not None:  # else mine is the fresh one, of zeros
        mine.dense_in.bias.copy_(theirs.dense_in.bias[best])
    mine.dense_out.weight.copy_(theirs.dense_out.weight[:, best])
    if mine.b_out is not None and theirs.b_out is not None:
        mine.b_out.copy_(theirs.b_out)


def sts_scorer(settings: Distill, tokenizer: Any, config: Config) -> Callable[[Encoder], dict[str, float]] | None:
    """A function that scores an embedder on STS-B's development set; None where settings.sts names no folder of it."""
    if settings.sts is None:
        return None
    from scipy.stats import spearmanr

    examples = GLUE["STS-B"].read(settings.sts, "dev")
    tokenizer.enable_truncation(config.max_tokens)
    rows = [e.ids for e in tokenizer.encode_batch([text for pair in examples.inputs for text in pair])]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))

    def score(encoder: Encoder) -> dict[str, float]:
        device = next(encoder.parameters()).device
        vectors = torch.empty(len(rows), encoder.config.tasks.embed.numbers(config.hidden))
        for part in (order[i : i + 256] for i in range(0, len(order), 256)):
            longest = len(rows[part[-1]])
            ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in part], device=device)
            mask = torch.arange(longest, device=device) < torch.tensor([[len(rows[i])] for i in part], device=device)
            vectors[part] = F.normalize(encoder.embed(encoder(ids, mask)[-1], mask), dim=-1).cpu()
        cosines = (vectors[::2] * vectors[1::2]).sum(-1)
        return {"sts_spearman": 100 * float(spearmanr(cosines.numpy(), examples.targets).statistic)}

    return score
