"""Conversion of checkpoints to fastinfer's own format: what convert.py, get_model.py and training share."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from fastinfer import checkpoint
from fastinfer.catalog import folder_of
from fastinfer.checkpoint import layouts
from fastinfer.config import Config, Dense, Embed, Stored
from fastinfer.errors import CheckpointError, ConfigError
from fastinfer.strict_json import read_json
from fastinfer.tokenizer import Tokenizer

STORED = ("float32", "float16", "bfloat16", "int8")
WORDPIECE_CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
CONTINUATIONS = 0.01  # share of pieces that begin with ##: BERT's vocabularies have a fifth or more, other kinds next to none


def convert(source: str | Path, out: Path, *, dtype: str | None = None, max_shard_mb: int | None = None) -> str:
    """Convert a checkpoint into folder `out`; the text says what was made.

    source        what fastinfer.load opens: a folder, or a name
    dtype         dtype of the stored embeddings, matrices and trees; None: as in the source. Vectors are float32.
    max_shard_mb  size in MB beyond which a file does not grow: the next tensor starts a new one

    Raises FastinferError where the source is not recognised, is broken or holds NaN, and where `out` may not be written.
    """
    source = folder_of(source)
    check_out(source, out)
    with checkpoint.unchanged(source), tempfile.TemporaryDirectory() as scratch:
        config, weights = checkpoint.load(source, validate=True)
        if dtype is not None:
            config = dataclasses.replace(config, stored=Stored(embeddings=dtype, matrices=dtype, trees=dtype))
        spec = checkpoint.tensors(config)
        for name in weights:  # one at a time, in place, so that memory holds the model once
            try:
                weights[name] = weights[name].to(spec[name].dtype)
            except CheckpointError as error:
                raise CheckpointError(f"{source}: {name}: {error}") from None
        tokenizer, about = find_tokenizer(layouts.body_of(source), config, Path(scratch))
        checkpoint.save(out, config, weights, tokenizer=tokenizer, max_shard_bytes=max_shard_mb and max_shard_mb * 10**6)
    if tokenizer is None:
        (out / "tokenizer.json").unlink(missing_ok=True)  # the replaced checkpoint may have had one
    return summary(out, config, sum(t.nbytes for t in weights.values()), about)


def check_out(source: Path, out: Path) -> None:
    """Raise CheckpointError unless `out` is new, empty, or a fastinfer checkpoint other than `source`."""
    if out.resolve() == source.resolve():
        raise CheckpointError(f"{out} is the source itself: name another folder to write")
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out} is a file, expected a folder to write")
    if not any(out.iterdir()):
        return
    data = read_json(out / "config.json") if (out / "config.json").exists() else None
    if not isinstance(data, dict) or "format_version" not in data:
        raise CheckpointError(f"{out} holds files that are no fastinfer checkpoint: name a new or an empty folder")


# --- tokenizers ------------------------------------------------------------------------------------


def find_tokenizer(source: Path, config: Config, scratch: Path) -> tuple[Path | None, str]:
    """(tokenizer.json to copy or None, a remark on it). It is built in folder `scratch` where the source has a WordPiece vocab.txt."""
    path, about = source / "tokenizer.json", "tokenizer.json of the source"
    if not path.exists():
        if not (source / "vocab.txt").exists():
            return None, "none: the source has neither tokenizer.json nor vocab.txt; feed ids"
        tokens = layouts.read_vocabulary(source / "vocab.txt", config.vocabulary)
        settings = layouts.read_options(source / "tokenizer_config.json")
        why_not = not_wordpiece(source, tokens, settings)
        if why_not:
            return None, f"none: {why_not}; feed ids"
        path, about = scratch / "tokenizer.json", "WordPiece, built from vocab.txt"
        path.write_text(build_wordpiece(source, tokens, settings), "utf-8")
    Tokenizer(path, config)  # raises where it does not fit the model
    return path, about


def not_wordpiece(source: Path, tokens: list[str], settings: dict) -> str | None:
    """The reason why vocab.txt may not be read as BERT's WordPiece; None where it may."""
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in WORDPIECE_CLASSES:
        return f"vocab.txt belongs to a {kind}, which this cannot build"
    if sum(token.startswith("##") for token in tokens) < CONTINUATIONS * len(tokens) or "[UNK]" not in tokens:
        return "vocab.txt does not look like WordPiece (pieces that begin with ##, and [UNK])"
    if (source / "added_tokens.json").exists():
        return "added_tokens.json adds to vocab.txt, which this cannot build; save the tokenizer with a newer transformers"
    missing = [key for key, names in layouts.special_tokens(source).items() if not set(names) & set(tokens)]
    return f"vocab.txt has no {' and no '.join(missing)} token" if missing else None


def build_wordpiece(source: Path, tokens: list[str], settings: dict) -> str:
    """The text of a tokenizer.json with BERT's cleaning, splitting and [CLS] text [SEP] frame, as tokenizer_config.json sets them."""
    from tokenizers import BertWordPieceTokenizer

    names = {f"{key}_token": next(n for n in candidates if n in tokens) for key, candidates in layouts.special_tokens(source).items()}
    chosen = {}
    for key, default in (("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True)):
        chosen[key] = settings.get(key, default)
        if not isinstance(chosen[key], bool) and chosen[key] is not default:
            raise ConfigError(f"{source / 'tokenizer_config.json'}: {key} is {chosen[key]!r}, expected true or false")
    made = BertWordPieceTokenizer(
        {token: i for i, token in enumerate(tokens)},
        lowercase=chosen["do_lower_case"],
        strip_accents=chosen["strip_accents"],
        handle_chinese_chars=chosen["tokenize_chinese_chars"],
        **names,
    )
    return made.to_str()


# --- what was made ---------------------------------------------------------------------------------


def vectors(config: Config, head: Embed) -> str:
    """A remark on the vectors of an embed head."""
    return f"{' + '.join(head.poolings)} pooling, {head.numbers(config.hidden)} numbers" + (", normalised" if head.normalize else "")


def summary(out: Path, config: Config, nbytes: int, tokenizer: str) -> str:
    """A small table of the checkpoint that was written into `out`; `tokenizer` is the remark on its tokenizer."""
    tasks = config.tasks
    details = {
        "embed": tasks.embed and vectors(config, tasks.embed),
        "classify": tasks.classify and f"{len(tasks.classify.labels)} labels, {tasks.classify.output}",
        "tag": tasks.tag and f"{len(tasks.tag.labels)} labels, {tasks.tag.scheme}",
    }
    stored = dataclasses.asdict(config.stored)
    if all(isinstance(ffn, Dense) for ffn in config.ffn):
        del stored["trees"]
    same = len(set(stored.values())) == 1
    rows = {
        "made": str(out),
        "tasks": ", ".join(f"{name} ({details[name]})" if details.get(name) else name for name in tasks.names) or "none",
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "feedforward": " | ".join(dict.fromkeys(str(ffn) for ffn in config.ffn)),
        "vocabulary": f"{config.vocabulary:,}",
        "tokens": f"at most {config.max_tokens:,} a text",
        "parameters": f"{checkpoint.parameters(config):,}",
        "bytes": f"{nbytes:,}",
        "stored": stored["matrices"] if same else ", ".join(f"{family} {dtype}" for family, dtype in stored.items()),
        "tokenizer": tokenizer,
    }
    return "\n".join(f"{key:<12} {value}" for key, value in rows.items())
