"""Train a FastBERT from text, distil a dense BERT into one, fine-tune it, export it.

    python tools/train.py pretrain RECIPE.toml --text corpus.txt.xz --out runs/mlm
    python tools/train.py distill  RECIPE.toml --teacher .models/minilm --text corpus.txt.xz --out runs/embedder
    python tools/train.py finetune RECIPE.toml ...
    python tools/train.py export   runs/embedder models/embedder --stored int8

A recipe is a TOML file; every key of it is a flag, too, which overrides it (COMMAND --help lists them). A run is a folder, and
--resume goes on with it. Several GPUs or processes: torchrun --nproc-per-node N tools/train.py ...
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fff_torch
import finetune
import loop
import numpy as np
import recipe as recipes
import text
import torch
import torch.distributed as dist
import torch.nn.functional as F
from convert import STORED, summary
from fff_torch import Encoder
from loop import Objective, Training, Workers
from recipe import option
from torch import Tensor

from fastinfer import checkpoint
from fastinfer.checkpoint.layouts import SPECIAL_TOKENS
from fastinfer.config import FFF, Config, Dense, Embed, FillMask, Ids, Norm, Positions, Tasks
from fastinfer.errors import ConfigError, FastinferError, InputError

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens that the rows of a batch are padded to
MASKED = (0.8, 0.9)  # of the tokens to guess, 80% become [MASK], 10% another token, 10% stay (Devlin et al., arXiv 1810.04805)
SHAPE = re.compile(r"(?:dense (\d+)|(\d+)x(\d+)(?: ?\+ ?(\d+))?)")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclasses.dataclass(frozen=True)
class _OnText(Training):
    text: tuple[str, ...] = option((), "files to train on: .txt or .jsonl, perhaps with .gz or .xz")
    shape: str = option("1x11", 'feedforward: "PxD", "PxD + W" with W neurons always on, or "dense W"')
    cache: str | None = option(None, "a .npz file that keeps the text's ids for the next run")


@dataclasses.dataclass(frozen=True)
class Pretrain(_OnText):
    """Masked language modelling from text, from scratch."""

    tokenizer: str | None = option(None, "tokenizer.json (default: a WordPiece trained on the text)")
    vocabulary: int = option(30522, "tokens of a WordPiece that is trained")
    hidden: int = option(384, "hidden width D")
    layers: int = option(6, "layers")
    heads: int = option(12, "attention heads H")
    max_tokens: int = option(128, "tokens of a row")
    masked: float = option(0.15, "share of the tokens to guess")


@dataclasses.dataclass(frozen=True)
class Distill(_OnText):
    """A sentence embedder, or any BERT, into the same encoder with other feedforwards."""

    teacher: str | None = option(None, "folder of the teacher: a checkpoint that fastinfer.load opens")
    max_tokens: int | None = option(None, "tokens of the longest text trained on (default: the teacher's limit)")
    hidden_weight: float = option(1.0, "weight of the hidden states' error")
    embed_weight: float = option(10.0, "weight of 1 - cosine of the embeddings; of embedders")
    similarity_weight: float = option(100.0, "weight of the squared error of the similarities in a batch; of embedders")
    copy: bool = option(False, "start the always-on neurons as the teacher's strongest")
    start: str | None = option(None, "folder of an earlier student to go on from; it may have more neurons always on: the strongest stay")
    sts: str | None = option(None, "folder with STS-B's dev.tsv, scored at each validation; of embedders")


# --- pretrain --------------------------------------------------------------------------------------


class MaskedLanguageModel(Objective):
    """Cross entropy of the tokens to guess."""

    def __init__(self, encoder: Encoder, balance: float) -> None:
        super().__init__()
        self.encoder, self.balance = encoder, balance

    def forward(
        self, ids: Tensor, mask: None, places: Tensor, labels: Tensor, seen: list[tuple[Tensor, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """ids (B, L) with tokens hidden; places (B, G) of those to guess and their labels (B, G)."""
        seen = [] if seen is None and self.balance else seen
        states = self.encoder(ids, mask, seen=seen)[-1]
        chosen = states.gather(1, places[..., None].expand(-1, -1, states.shape[2])).flatten(0, 1)
        loss = F.cross_entropy(self.encoder.fill_mask(chosen).float(), labels.flatten())
        return with_balance({"loss": loss, "tokens": torch.tensor(float(ids.numel()), device=ids.device)}, self, seen, None)


def with_balance(losses: dict[str, Tensor], objective: Objective, seen: list | None, mask: Tensor | None) -> dict[str, Tensor]:
    """`losses` with the balance of all layers that have trees, where it counts."""
    if objective.balance:
        layers = [layer.ffn for layer in objective.encoder.layers if layer.ffn.nodes is not None]
        losses["balance"] = sum(ffn.balance(*record, mask) for ffn, record in zip(layers, seen, strict=True))
        losses["loss"] = losses["loss"] + objective.balance * losses["balance"]
    return losses


class Rows:
    """Full rows of text with tokens to guess."""

    def __init__(self, rows: tuple[np.ndarray, np.ndarray], settings: Pretrain, ids: Ids, vocabulary: int, workers: Workers) -> None:
        self.rows = [torch.from_numpy(r.astype(np.int32)).to(workers.device) for r in rows]
        self.settings, self.ids, self.vocabulary, self.workers = settings, ids, vocabulary, workers

    def batch(self, step: int, validation: bool = False) -> tuple[Tensor | None, ...]:
        """(ids (B, L), None, places (B, G), labels (B, G)) of this process."""
        rng = np.random.default_rng((self.settings.seed, step, validation))
        rows, length = self.rows[validation], self.settings.max_tokens
        count, guesses = self.settings.batch_tokens // length, max(1, round(self.settings.masked * length))
        mine = self.workers.rows(count)
        chosen = rng.integers(0, len(rows), count)[mine]
        places = 1 + rng.random((count, length - 2)).argpartition(guesses - 1, 1)[mine, :guesses]
        how, other = rng.random((count, guesses))[mine], rng.integers(0, self.vocabulary, (count, guesses))[mine]
        device = rows.device
        chosen, places, how, other = (torch.from_numpy(a).to(device) for a in (chosen, places, how, other))
        ids = rows[chosen].long()
        labels = ids.gather(1, places)
        shown = torch.where(how < MASKED[0], self.ids.mask, torch.where(how < MASKED[1], other, labels))
        return ids.scatter(1, places, shown), None, places, labels


def pretrain(settings: Pretrain, resume: bool) -> None:
    """Train a masked language model as `settings` say and export it."""
    feedforward = parse_shape(settings.shape)
    run, workers = open_run(settings, resume)
    tokenizer_file = run / "tokenizer.json"
    if workers.rank == 0 and not resume:
        tokenizer = text.read_tokenizer(settings.tokenizer) if settings.tokenizer else train_tokenizer(settings)
        tokenizer.save(str(tokenizer_file))
    workers.wait()
    tokenizer = text.read_tokenizer(tokenizer_file)
    ids = special_ids(tokenizer, tokenizer_file)
    corpora = text.read(settings.text, tokenizer, settings.cache and Path(settings.cache), progress=workers.rank == 0)
    rows = tuple(corpus.rows(settings.max_tokens, (ids.cls, ids.sep)) for corpus in corpora)
    if not all(map(len, rows)):
        found = " and ".join(f"{len(c.ids):,}" for c in corpora)
        raise InputError(f"the text has {found} tokens to train and to validate, expected a row of {settings.max_tokens} of each: add text")
    torch.manual_seed(settings.seed)
    config = Config(
        hidden=settings.hidden,
        layers=settings.layers,
        heads=settings.heads,
        vocabulary=tokenizer.get_vocab_size(),
        norm=Norm("pre", 1e-12),
        positions=Positions("learned", settings.max_tokens),
        ffn=(feedforward,) * settings.layers,
        max_tokens=settings.max_tokens,
        tasks=Tasks(Embed("mean", True), FillMask(transform=True)),
        final_norm=True,
        ids=ids,
    )
    objective = MaskedLanguageModel(Encoder(config), settings.balance)
    loop.fit(objective, Rows(rows, settings, ids, config.vocabulary, workers), settings, workers, resume=resume)
    finish(run, settings, workers)


def train_tokenizer(settings: Pretrain) -> Any:
    """BERT's uncased WordPiece, trained on the text."""
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(text.paragraphs(settings.text), settings.vocabulary, special_tokens=SPECIAL, show_progress=False)
    return made._tokenizer


def special_ids(tokenizer: Any, path: Path) -> Ids:
    """The ids of the tokens with a meaning. Raises InputError for a tokenizer that lacks [CLS], [SEP] or [MASK]."""
    found = {key: next((n for n in map(tokenizer.token_to_id, names) if n is not None), None) for key, names in SPECIAL_TOKENS.items()}
    missing = [SPECIAL_TOKENS[key][0] for key in ("cls", "sep", "mask") if found[key] is None]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)} token, which masked language modelling needs")
    return Ids(**found)


# --- distill ---------------------------------------------------------------------------------------


class Distillation(Objective):
    """The student's hidden states and embeddings against the teacher's.

    hidden      of every layer, the mean over tokens of |student - teacher|² / |teacher|², summed over layers
    embed       1 - cosine of the embeddings, the mean over texts
    similarity  the mean squared error of the batch's matrix of cosines (all processes' texts together)
    """

    def __init__(self, encoder: Encoder, teacher: Encoder, settings: Distill) -> None:
        super().__init__()
        self.encoder, self.settings, self.balance = encoder, settings, settings.balance
        self.teacher = teacher.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Distillation:
        """The teacher never trains."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, ids: Tensor, mask: Tensor, seen: list[tuple[Tensor, Tensor]] | None = None) -> dict[str, Tensor]:
        """ids (B, L), mask (B, L)."""
        settings = self.settings
        seen = [] if seen is None and self.balance else seen
        with torch.no_grad():
            wanted = self.teacher(ids, mask)
        states = self.encoder(ids, mask, seen=seen)
        tokens = mean_of_processes(mask.sum().float())  # so that the mean of the processes' losses is the loss of the whole batch
        weight = mask[..., None] / tokens
        losses = {"hidden": sum(relative_error(s, t, weight) for s, t in zip(states[1:], wanted[1:], strict=True))}
        loss = settings.hidden_weight * losses["hidden"]
        if self.encoder.config.tasks.embed:
            student = F.normalize(self.encoder.embed(states[-1], mask), dim=-1)
            teacher = F.normalize(self.teacher.embed(wanted[-1], mask), dim=-1)
            losses["embed"] = 1 - (student * teacher).sum(-1).mean()
            every_student, every_teacher = every_row(student), every_row(teacher)
            losses["similarity"] = ((student @ every_student.T - teacher @ every_teacher.T).float() ** 2).mean()
            loss = loss + settings.embed_weight * losses["embed"] + settings.similarity_weight * losses["similarity"]
        return with_balance({"loss": loss, **losses, "tokens": tokens}, self, seen, mask.flatten())


def relative_error(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The sum over tokens of weight · |student - teacher|² / |teacher|². Tensors (B, L, D), weight (B, L, 1)."""
    student, teacher = student.float(), teacher.float()
    return (((student - teacher) ** 2).sum(-1, keepdim=True) / (teacher**2).sum(-1, keepdim=True) * weight).sum()


def mean_of_processes(x: Tensor) -> Tensor:
    """A number's mean over the processes, as a constant."""
    if dist.is_initialized():
        dist.all_reduce(x)
        x = x / dist.get_world_size()
    return x


def every_row(x: Tensor) -> Tensor:
    """(B, D) of this process -> the rows of all processes, through which gradients flow."""
    if not dist.is_initialized():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x))


class Pieces:
    """Pieces of text, in batches of nearly equal length."""

    def __init__(self, corpora: tuple[text.Corpus, text.Corpus], settings: Distill, longest: int, ids: Ids, workers: Workers) -> None:
        self.settings, self.ids, self.workers = settings, ids, workers
        self.lengths = [n for n in LENGTHS if n < longest] + [longest]
        self.sources = [self._source(corpus, longest, workers.device) for corpus in corpora]

    def _source(self, corpus: text.Corpus, longest: int, device: torch.device) -> tuple[Tensor, Tensor, list[np.ndarray], np.ndarray]:
        """The ids, (begin, end) of pieces in them, by length the numbers of the pieces, and how often each length comes."""
        begin, end = corpus.pieces(longest - 2)
        kind = np.searchsorted(self.lengths, end - begin + 2)
        numbers = [np.flatnonzero(kind == k) for k in range(len(self.lengths))]
        often = np.array([len(n) * length for n, length in zip(numbers, self.lengths, strict=True)], float)
        if not len(begin):
            raise InputError("the text has no pieces to train on or none to validate with: add text")
        padded = torch.from_numpy(np.concatenate([corpus.ids, np.zeros(longest, corpus.ids.dtype)]).astype(np.int32))
        return padded.to(device), torch.from_numpy(np.stack([begin, end])).to(device), numbers, often / often.sum()

    def batch(self, step: int, validation: bool = False) -> tuple[Tensor | None, ...]:
        """(ids (B, L), mask (B, L)) of this process."""
        rng = np.random.default_rng((self.settings.seed, step, validation))
        source, pieces, numbers, often = self.sources[validation]
        kind = rng.choice(len(often), p=often)
        length = self.lengths[kind]
        count = max(self.workers.world, self.settings.batch_tokens // length)
        chosen = torch.from_numpy(rng.choice(numbers[kind], count)[self.workers.rows(count)]).to(source.device)
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
        raise InputError("distillation has no teacher: set teacher to the folder of a dense model, such as tools/get_model.py makes")
    run, workers = open_run(settings, resume)
    torch.manual_seed(settings.seed)
    teacher = fff_torch.load(settings.teacher)
    ids, folder = teacher.config.ids, Path(settings.teacher)
    if ids.cls is None or ids.sep is None or not (folder / "tokenizer.json").exists():
        raise ConfigError(
            f"{folder} has no tokenizer.json with a token that begins a text and one that ends it: it is no BERT to learn from"
        )
    tokenizer = text.read_tokenizer(folder / "tokenizer.json")
    if workers.rank == 0:
        tokenizer.save(str(run / "tokenizer.json"))
    longest = settings.max_tokens or teacher.config.max_tokens
    if not 8 <= longest <= teacher.config.positions.max:
        raise InputError(f"max_tokens is {longest}, expected 8 to {teacher.config.positions.max}, the teacher's positions")
    objective = Distillation(make_student(teacher, settings), teacher, settings)
    corpora = text.read(settings.text, tokenizer, settings.cache and Path(settings.cache), progress=workers.rank == 0)
    data = Pieces(corpora, settings, longest, ids, workers)
    loop.fit(objective, data, settings, workers, resume=resume, evaluate=sts_scorer(settings, tokenizer, teacher.config))
    finish(run, settings, workers)


def make_student(teacher: Encoder, settings: Distill) -> Encoder:
    """The teacher with fresh feedforwards, or settings.start's layers. Its embeddings are frozen, rounded as they will be stored."""
    config = teacher.config
    tasks = Tasks(embed=config.tasks.embed or Embed("mean", True))
    student = Encoder(dataclasses.replace(config, ffn=(parse_shape(settings.shape),) * config.layers, tasks=tasks))
    known = {n: w for n, w in teacher.state_dict().items() if (".ffn." not in n or ".ffn.norm." in n) and not n.startswith("tasks.")}
    source = teacher if settings.start is None else earlier_student(student.config, settings)
    if source is not teacher:
        always_on = (".dense_in.", ".dense_out.")
        known |= {n: w for n, w in source.state_dict().items() if n.startswith("layers.") and not any(a in n for a in always_on)}
    student.load_state_dict(student.state_dict() | known)
    if settings.copy or source is not teacher:
        for mine, theirs in zip(student.layers, source.layers, strict=True):
            if mine.ffn.dense_in is not None:
                copy_strongest(mine.ffn, theirs.ffn)
    for name, weight in student.embedding.named_parameters():
        weight.requires_grad_(False)
        if "norm" not in name and name != "position_scale":
            rounded = checkpoint.Tensor(weight.numpy(), "float32").to(settings.stored).float32()
            weight.copy_(torch.from_numpy(rounded))
    return student


def earlier_student(config: Config, settings: Distill) -> Encoder:
    """The checkpoint in settings.start. Raises InputError where it differs from `config` in more than neurons always on to spare."""
    start = fff_torch.load(settings.start)
    theirs, mine = start.config.ffn[0], config.ffn[0]
    fits = dataclasses.replace(start.config, ffn=config.ffn, tasks=config.tasks) == config and len(set(start.config.ffn)) == 1
    fits = fits and isinstance(theirs, FFF) and isinstance(mine, FFF)
    if not fits or dataclasses.replace(theirs, dense=mine.dense) != mine or theirs.dense < mine.dense:
        raise InputError(
            f"start is {settings.start} with feedforwards {theirs}, expected a student of this teacher with {mine}, or more of `dense`"
        )
    if settings.copy:
        raise InputError("start and copy both say where the always-on neurons come from: leave one of the two out")
    return start


@torch.no_grad()
def copy_strongest(mine: fff_torch.Feedforward, theirs: fff_torch.Feedforward) -> None:
    """Fill always-on neurons with those of `theirs` whose in-row and out-row are longest, by the product of the lengths."""
    strength = theirs.dense_in.weight.norm(dim=1) * theirs.dense_out.weight.norm(dim=0)
    best = strength.topk(len(mine.dense_in.weight)).indices
    mine.dense_in.weight.copy_(theirs.dense_in.weight[best])
    mine.dense_in.bias.copy_(theirs.dense_in.bias[best])
    mine.dense_out.weight.copy_(theirs.dense_out.weight[:, best])


def sts_scorer(settings: Distill, tokenizer: Any, config: Config) -> Callable[[Encoder], dict[str, float]]:
    """Scores an embedder on STS-B's development set where settings.sts names its folder."""
    if settings.sts is None:
        return lambda encoder: {}
    from scipy.stats import spearmanr
    from tasks import GLUE

    examples = GLUE["STS-B"].read(settings.sts, "dev")
    tokenizer.enable_truncation(config.max_tokens)
    rows = [e.ids for e in tokenizer.encode_batch([text for pair in examples.inputs for text in pair])]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))

    def score(encoder: Encoder) -> dict[str, float]:
        device = next(encoder.parameters()).device
        vectors = torch.empty(len(rows), config.hidden)
        for part in (order[i : i + 256] for i in range(0, len(order), 256)):
            longest = len(rows[part[-1]])
            ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in part], device=device)
            mask = torch.arange(longest, device=device) < torch.tensor([[len(rows[i])] for i in part], device=device)
            vectors[part] = F.normalize(encoder.embed(encoder(ids, mask)[-1], mask), dim=-1).cpu()
        cosines = (vectors[::2] * vectors[1::2]).sum(-1)
        return {"sts_spearman": 100 * float(spearmanr(cosines.numpy(), examples.targets).statistic)}

    return score


# --- common ----------------------------------------------------------------------------------------


def parse_shape(shape: str) -> Dense | FFF:
    """ "1x11", "8x8 + 128" or "dense 1536" as a feedforward. Raises InputError."""
    found = SHAPE.fullmatch(shape)
    if not found:
        raise InputError(
            f'shape is {shape!r}, expected trees x depth such as "1x11", "1x11 + 64" with 64 neurons always on, or "dense 1536"'
        )
    width, trees, depth, always = (int(n or 0) for n in found.groups())
    return Dense(width) if width else FFF(trees, depth, always, bias_out=True)


def open_run(settings: Training, resume: bool) -> tuple[Path, Workers]:
    """The folder of the run and the processes that share it. Raises InputError for settings out of range, before anything is read."""
    if settings.stored not in STORED:
        raise InputError(f"stored is {settings.stored!r}, expected one of {', '.join(STORED)}")
    return loop.open_run(settings, resume), Workers.start(settings.device)


def finish(run: Path, settings: Training, workers: Workers) -> None:
    """Export the finished run beside its state."""
    if workers.rank == 0:
        print(export(run, run / "model", settings.stored))


def export(run: Path, out: Path, stored: str) -> str:
    """Write a run's last state as a checkpoint folder that fastinfer.load opens; the text says what was made."""
    encoder = loop.trained(run)
    tokenizer = run / "tokenizer.json"
    fff_torch.save(encoder, out, stored=stored, tokenizer=tokenizer if tokenizer.exists() else None)
    config, weights = checkpoint.load(out)
    return summary(out, config, sum(t.nbytes for t in weights.values()), "that of the run")


COMMANDS = (("pretrain", Pretrain, pretrain), ("distill", Distill, distill), ("finetune", finetune.Finetune, finetune.run))


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, kind, run in COMMANDS:
        command = commands.add_parser(name, help=kind.__doc__, description=kind.__doc__)
        recipes.add_flags(command, kind)
        command.add_argument("--resume", action="store_true", help="go on with the run in --out")
        command.set_defaults(run=lambda options, kind=kind, run=run: run(recipes.from_options(kind, options), options.resume))
    command = commands.add_parser("export", help="A run as a checkpoint folder.", description="Write a run as a checkpoint folder.")
    command.add_argument("source", metavar="RUN", type=Path, help="folder of a run")
    command.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    command.add_argument(
        "--stored", choices=STORED, default="float32", help="dtype of embeddings, matrices and trees (default: %(default)s)"
    )
    command.set_defaults(run=lambda options: print(export(options.source, options.out, options.stored)))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (FastinferError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
