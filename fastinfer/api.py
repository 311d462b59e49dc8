"""load() and Model: texts in, answers out."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import backends, checkpoint, heads
from .batch import PackedBatch
from .catalog import folder_of
from .config import FFF, Config
from .errors import InputError, TaskError, about, check_flag, check_int, listed, printable, short
from .run import Head, Options, Replica, Runner, positive
from .tokenizer import Tokenizer, TruncationWarning, Window, as_singles, as_text, as_texts, each_text, warn_of

__all__ = ["Model", "load"]

STREAM_TEXTS = 1024  # texts: embed_iter() tokenises this many at a time, enough to sort by length, few to hold in memory


def load(
    path_or_name: str | os.PathLike[str] | None = None,
    *,
    device: str | Sequence[str] = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    max_depth: int | None = None,
    validate: bool | None = None,
    copy: bool = False,
) -> Model:
    """The Model of a checkpoint folder (config.json, safetensors, tokenizer.json) in this format or a layout of checkpoint/layouts.

    path_or_name  the folder, or the name of a model that ships inside the package; None: the first such model
    device        "auto" (a usable GPU, else the compiled CPU backend, else NumPy), "cpu", "cpu:ISA", "cuda", "cuda:N", "numpy"; or a list
                  of these: each device gets the model, and they take batches in turn
    dtype         dtype to compute in: None (as the checkpoint suggests), "float32", "bfloat16", "float16" (GPU) or "int8"; sums are float32
    threads       most threads per call, limited to the CPUs that this process may use; None: this limit
    max_depth     walk trees at most this many decisions deep; None: walk to the leaves
    validate      scan the weights for NaN and infinity; None: only when the files are small
    copy          read the weights into memory; False: map the files, so that processes share them and unused weights are not read

    Tensors over 64 KB that are used as they are stored (embeddings and trees on the CPU; with NumPy all float32 tensors) stay in the
    mapped file as long as the model lives; tables of children never do. Replacing the file, as checkpoint.save does, is safe. Writing
    into the file changes answers without a warning. Truncating it ends the process with SIGBUS, which Python cannot turn into an
    error; this holds during the load, too. Pass copy=True where other programs may do either.

    Raises CheckpointError, ConfigError or BackendError with the value found, the value expected and what to do.
    """
    folder = folder_of(path_or_name)
    max_depth = None if max_depth is None else check_int("max_depth", max_depth, 0)
    if not isinstance(device, str) and not (isinstance(device, Sequence) and device):
        raise InputError(f"device is {short(device)}, expected a string such as 'cpu', or a list of them")
    if validate is not None:
        check_flag("validate", validate)
    check_flag("copy", copy)
    devices = [backends.get(d, dtype=dtype, threads=threads) for d in ([device] if isinstance(device, str) else device)]
    with checkpoint.unchanged(folder):
        config, stored, found = checkpoint.load_all(folder, validate=validate, copy=copy)
        tokenizer = Tokenizer(found.file, config) if found.file else None
        nbytes = sum(t.nbytes for t in stored.values())
        with about(str(folder)):
            sizes = config.hidden, config.heads, stored["layers.0.attention.qkv.weight"].dtype
            fitted = [ops.fitted(*sizes) for ops in devices]
            replicas = [Replica(ops, ops.prepare(config, stored, max_depth)) for ops in fitted]
    return Model(config, replicas, tokenizer, str(folder), nbytes, found.about)


class Model:
    """A loaded model, made by load(). Several threads may use it at once.

    config     the architecture (fastinfer.config.Config)
    tasks      names of its heads, some of embed, fill_mask, classify, tag, answer
    tokenizer  fastinfer.tokenizer.Tokenizer, or None for a checkpoint without tokenizer.json
    nbytes     bytes of the stored weights

    Every `texts` argument is a text or a batch of texts. A text is a str or a pair (str, str); a single
    text is a batch of one and still gives a batch back. A batch is any iterable that holds its texts in
    order: a list, an iterator, a NumPy array, a pandas Series; not a table, a dict or a set. A tuple of
    two str is a pair; where pairs have no meaning (tag, answer, rank) it is a batch. A PackedBatch of ids
    is accepted too, except by the tasks that give back text. tag and answer read long texts in windows.
    The other methods cut texts over config.max_tokens tokens. They then give one
    fastinfer.tokenizer.TruncationWarning per call, which names the line of the call.
    """

    def __init__(
        self, config: Config, replicas: list[Replica], tokenizer: Tokenizer | None, name: str, nbytes: int, lacks: str = ""
    ) -> None:
        self.config = config
        self.tasks = config.tasks.names
        self.tokenizer = tokenizer
        self.nbytes = nbytes
        self.device = ", ".join(ops.device for ops, _ in replicas)
        self._name = name
        self._runner = Runner(config, replicas, tokenizer, name, lacks)

    def __repr__(self) -> str:
        c = self.config
        feedforwards = listed(dict.fromkeys(c.ffn), " | ")
        return printable(
            f"<fastinfer.Model {self._name}: {c.layers} layers, hidden {c.hidden}, feedforward {feedforwards}, "
            f"tasks {', '.join(self.tasks) or 'none'}, {self.nbytes / 1e6:.1f} MB, device {self.device}>"
        )

    # --- tasks ---

    def embed(
        self,
        texts: Any,
        *,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """One vector per text: (B, D) float32, pooled as the checkpoint says.

        normalize     scale each vector to length 1; None: as the checkpoint says
        batch_tokens  most tokens per packed batch (a longer text is a batch by itself); None: the device's default
        progress      show a progress bar on standard error
        """
        cuts: list[TruncationWarning] = []
        out = self._embed(texts, cuts, normalize, Options(batch_tokens, threads, progress))
        warn_of(cuts)
        return out

    def embed_iter(
        self, texts: Iterable[Any], *, normalize: bool | None = None, batch_tokens: int | None = None, threads: int | None = None
    ) -> Iterator[np.ndarray]:
        """embed() for a stream of any length: yields one (D,) vector per text, in order, holding a bounded number of texts.

        One TruncationWarning at the end covers all texts that were cut.
        """
        self._head("embed")
        cuts: list[TruncationWarning] = []
        options = Options(batch_tokens, threads)
        if isinstance(texts, PackedBatch):
            yield from self._embed(texts, cuts, normalize, options)
            return
        stream = each_text(texts)
        while window := list(itertools.islice(stream, STREAM_TEXTS)):
            yield from self._embed(window, cuts, normalize, options)
        warn_of(cuts)

    def _embed(self, texts: Any, cuts: list[TruncationWarning], normalize: bool | None, options: Options) -> np.ndarray:
        """embed(), except that its warnings are appended to `cuts` and not given."""
        head = self._head("embed")
        normalize = head.normalize if normalize is None else check_flag("normalize", normalize)
        total, windows = self._runner.windows(texts, cuts)
        out = np.empty((total, self.config.hidden), np.float32)
        for which, _, vectors in self._runner.run(windows, total, self._forward("embed"), options):
            out[which] = heads.embed.normalized(vectors) if normalize else vectors
        return out

    def classify(
        self, texts: Any, *, top_k: int | None = None, batch_tokens: int | None = None, threads: int | None = None, progress: bool = False
    ) -> list[Any]:
        """Per text a list of (label, score), best first, at most top_k; for a regression model, a float per text."""
        head = self._head("classify")
        logits = self._text_logits(texts, "classify", Options(batch_tokens, threads, progress))
        return heads.classify.decode(logits, head, positive("top_k", top_k))

    def fill_mask(
        self, texts: Any, *, top_k: int = 5, batch_tokens: int | None = None, threads: int | None = None, progress: bool = False
    ) -> list[list[list[tuple[str, float, str]]]]:
        """Per text, per mask token: the top_k (token, score, text with that mask filled), best first.

        Raises InputError for a text without the model's mask token (shown in the message).
        """
        self._head("fill_mask")
        best_k = positive("top_k", top_k)
        tokenizer, mask, options = self._runner.tokenizer("fill_mask"), self._mask(), Options(batch_tokens, threads, progress)
        cuts: list[TruncationWarning] = []

        def fill(texts: list[Any], first: int) -> list[Any]:
            encodings = tokenizer.encode(texts, cuts=cuts)
            places = [[row for row, id_ in enumerate(encoding.ids) if id_ == mask] for encoding in encodings]
            for i, rows in enumerate(places):
                if not rows:
                    name, limit = tokenizer.raw.id_to_token(mask), self.config.max_tokens
                    warn_of(cuts)
                    raise InputError(f"texts[{first + i}] has no {name} to fill in its first {limit} tokens: {short(texts[i])}")
            answers: list[Any] = [None] * len(texts)
            for i, logits in self._runner.per_mask([self._runner.packed(encodings)], len(texts), self._forward("fill_mask"), mask, options):
                scores = heads.common.softmax(logits)
                best = np.argsort(-scores, axis=1, kind="stable")[:, :best_k]
                answers[i] = [
                    heads.fill_mask.decode(tokenizer, texts[i], encodings[i], place, [(int(k), float(row[k])) for k in ids])
                    for place, row, ids in zip(places[i], scores, best, strict=True)
                ]
            return answers

        answers = self._runner.by_portions(as_texts(texts), fill, options)
        warn_of(cuts)
        return answers

    def tag(
        self,
        texts: Any,
        *,
        strategy: str = "first",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> list[list[tuple[Any, ...]]]:
        """Per text its tagged spans: (start, end, label, score, text[start:end]), character offsets, in reading order.

        strategy  how a word gets its tag: "first", from its first token; "average", from the mean of its tokens' probabilities; "max",
                  from its most certain token. "simple" tags each token by itself: it suits languages without spaces, and may cut words

        The score is the mean probability of a span's words or tokens. A long text is read in windows that overlap. Texts are single,
        not pairs.
        """
        head = self._head("tag")
        tokenizer, options = self._runner.tokenizer("tag"), Options(batch_tokens, threads, progress)
        if not isinstance(strategy, str) or strategy not in heads.tag.STRATEGIES:
            raise InputError(f"strategy is {short(strategy)}, expected one of {', '.join(map(repr, heads.tag.STRATEGIES))}")

        def tags(texts: list[Any], first: int) -> list[Any]:
            wholes, windows = tokenizer.windows(texts, first)
            said = self._window_logits(windows, "tag", options)
            answers = []
            for i, group in itertools.groupby(zip(windows, said, strict=True), lambda pair: pair[0].text):
                scores = heads.words.join_windows([(window.rows, heads.common.softmax(rows)) for window, rows in group], wholes[i])
                answers.append(heads.tag.decode(scores, wholes[i], texts[i], head, strategy, tokenizer.marked))
            return answers

        return self._runner.by_portions(as_singles(texts), tags, options, whole=True)

    def answer(
        self,
        questions: Any,
        contexts: Any,
        *,
        top_k: int | None = 1,
        no_answer: bool = False,
        whole_words: bool = True,
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> list[list[tuple[Any, ...]]]:
        """Per question its top_k answers (None: all) in its context: (start, end, score, context[start:end]), best first.

        questions, contexts: a str each, or lists of equal length. A long context is read in windows that
        overlap. The score is the product of the start's and the end's probability within its window.

        no_answer    include (0, 0, score, "") among the answers, for "no answer"; for models that were trained on such questions
        whole_words  widen answers to whole words, and add up the scores of answers that become equal; False: answers end at any token

        Raises InputError for an empty question and, without no_answer, for an empty context.
        """
        self._head("answer")
        top_k = positive("top_k", top_k) or sys.maxsize
        tokenizer, options = self._runner.tokenizer("answer"), Options(batch_tokens, threads, progress)
        questions, contexts = as_singles(questions, "questions"), as_singles(contexts, "contexts")
        if len(questions) != len(contexts):
            raise InputError(f"got {len(questions)} questions and {len(contexts)} contexts, expected one context per question")
        none = self.config.ids.cls
        if check_flag("no_answer", no_answer) and none is None:
            raise InputError(f"no_answer: {self._name} names no token that stands for no answer (ids.cls in config.json)")
        check_flag("whole_words", whole_words)

        def spans(pairs: list[Any], first: int) -> list[Any]:
            wholes, windows = tokenizer.windows(pairs, first)
            pieces = [heads.words.pieces(whole, context, 1) for whole, (_, context) in zip(wholes, pairs, strict=True)]
            for i, (question, context) in enumerate(pairs):
                if not question.strip():
                    raise InputError(f"questions[{first + i}] is {short(question)}, expected a question")
                if not no_answer and all(piece.start == piece.end for piece in pieces[i]):
                    hint = "expected a text with an answer in it: leave it out, or pass no_answer=True"
                    raise InputError(f"contexts[{first + i}] is {short(context)}, {hint}")
            said = self._window_logits(windows, "answer", options)
            answers = []
            for i, group in itertools.groupby(zip(windows, said, strict=True), lambda pair: pair[0].text):
                whole, context = wholes[i], pairs[i][1]
                words = heads.words.words(pieces[i], context, tokenizer.marked) if whole_words else []
                word_of = {row: word for word in words for row in word.rows}
                parts = [heads.answer.decode(rows, window.rows, whole, context, word_of, none, top_k) for window, rows in group]
                answers.append(heads.answer.join(parts, context, no_answer)[:top_k])
            return answers

        return self._runner.by_portions(list(zip(questions, contexts, strict=True)), spans, options, whole=True)

    def rank(
        self,
        query: str,
        documents: Any,
        *,
        top_k: int | None = None,
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> list[tuple[int, float]]:
        """(index of the document, score), best first: the cosine of the embeddings, or a cross-encoder's score of the pair.

        A model with an embed head is used as an embedder; otherwise a classify head with a single label scores (query, document).

        documents  a batch of str; a tuple of str is a batch, too
        """
        if not isinstance(as_text(query, "query"), str):
            raise InputError("query is a pair, expected a str")
        top_k = positive("top_k", top_k)
        documents = as_singles(documents, "documents")
        options: dict[str, Any] = {"batch_tokens": batch_tokens, "threads": threads, "progress": progress}
        if self.config.tasks.embed:
            vectors = self.embed([query, *documents], normalize=True, **options)
            scores = np.einsum("bd,d->b", vectors[1:], vectors[0])  # the order of BLAS's sums would depend on the number of rows
        elif self.config.tasks.classify and len(self.config.tasks.classify.labels) == 1:
            pairs = [(query, document) for document in documents]
            logits = self._text_logits(pairs, "classify", Options(**options))[:, 0]
            scores = heads.common.sigmoid(logits) if self.config.tasks.classify.output == "sigmoid" else logits
        else:
            raise TaskError(
                f"{self._name} cannot rank: it has neither an embed head nor a classify head of one label, only {self._tasks()}"
            )
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:top_k]]

    # --- states, logits and routes ---

    def hidden_states(
        self, texts_or_batch: Any, *, layers: tuple[int, ...] = (-1,), batch_tokens: int | None = None, threads: int | None = None
    ) -> list[Any]:
        """Per text its hidden states (tokens, D) float32, or a tuple of them where several layers are asked for.

        layers  0 = embedding, i = after layer i, -1 = after the final norm
        """
        count = self.config.layers
        if not isinstance(layers, (tuple, list)) or not layers:
            raise InputError(f"layers is {short(layers)}, expected a tuple of integers from 0 to {count}, or -1 for the final norm")
        given = [check_int(f"layers[{n}]", i, -1, count, because=", or -1 for the final norm") for n, i in enumerate(layers)]
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts_or_batch, cuts)
        result: list[Any] = [None] * total
        with self._runner.turn(threads) as (ops, weights, work):
            for which, part in self._runner.parts(windows, Options(batch_tokens)):
                taps: dict[int, Any] = {i: np.empty((len(part.ids), self.config.hidden), np.float32) for i in set(given) - {-1}}
                with work:
                    last = ops.bring(ops.encode(weights, part, work, taps=taps))()
                taps[-1] = last if last.flags.owndata else last.copy()  # a view is of a buffer that the next batch reuses
                # A layer that is asked for twice gives two arrays, so that writing into one does not change the other.
                states = [part.split(taps[i].copy() if i in given[:n] else taps[i]) for n, i in enumerate(given)]
                for row, b in enumerate(which):
                    result[b] = states[0][row] if len(states) == 1 else tuple(s[row] for s in states)
        warn_of(cuts)
        return result

    def logits(
        self,
        texts_or_batch: Any,
        *,
        task: str | None = None,
        positions: str = "mask",
        batch_tokens: int | None = None,
        threads: int | None = None,
    ) -> Any:
        """Raw logits: classify (B, K); tag per text (tokens, K); answer per text (tokens, 2); fill_mask per text (masks, V).

        task       name of the head; needed where the model has several
        positions  for fill_mask: "mask" (mask tokens only) or "all" (tokens, V)
        """
        if not isinstance(positions, str) or positions not in ("mask", "all"):
            raise InputError(f"positions is {short(positions)}, expected 'mask' or 'all'")
        named = [t for t in self.tasks if t != "embed"]
        if task is None and len(named) != 1:
            raise TaskError(f"{self._name} has {self._tasks()}: " + ("name one with task=" if named else "no head that gives logits"))
        task = named[0] if task is None else task
        self._head(task)
        options = Options(batch_tokens, threads)
        if heads.HEADS[task].LOGITS == "text":
            return self._text_logits(texts_or_batch, task, options)
        if heads.HEADS[task].LOGITS is None:
            raise TaskError(f"task {task!r} gives no logits; this model has {self._tasks()}")
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts_or_batch, cuts)
        if heads.HEADS[task].LOGITS == "mask":
            mask = self._mask() if positions == "mask" else None
            found = self._runner.per_mask(windows, total, self._forward(task), mask, options)
            rows = [logits for _, logits in sorted(found, key=lambda text: text[0])]
        else:
            rows = self._runner.per_text(windows, total, self._forward(task), options)
        warn_of(cuts)
        return rows

    def routes(self, texts_or_batch: Any, *, batch_tokens: int | None = None, threads: int | None = None) -> list[list[Any]]:
        """Per text, per layer: (nodes, z), the visited nodes (tokens, P, depth + 1) int32, -1 after a stop, and their float32 logits.

        None stands for a dense layer.
        """
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts_or_batch, cuts)
        result: list[Any] = [None] * total
        with self._runner.turn(threads) as (ops, weights, work):
            shapes = [
                (f.trees, layer.ffn.trees.depth + 1) if isinstance(f, FFF) and layer.ffn.trees is not None else None
                for f, layer in zip(self.config.ffn, weights.layers, strict=True)
            ]
            for which, part in self._runner.parts(windows, Options(batch_tokens)):
                tokens = len(part.ids)
                routes = [s and (np.empty((tokens, *s), np.int32), np.empty((tokens, *s), np.float32)) for s in shapes]
                with work:
                    ops.encode(weights, part, work, routes=routes)
                split = [r and [part.split(a) for a in r] for r in routes]
                for row, b in enumerate(which):
                    result[b] = [s and (s[0][row], s[1][row]) for s in split]
        warn_of(cuts)
        return result

    def release(self) -> None:
        """Give back the memory of finished calls (buffers and graphs on a GPU); weights stay. The next call allocates it again."""
        for ops, _ in self._runner.replicas:
            ops.release()

    # --- heads ---

    def _forward(self, task: str) -> Head:
        """The forward function of a head, in the form that Runner.run() takes."""
        head, forward = self._head(task), heads.HEADS[task].forward
        return lambda ops, weights, x, part: forward(ops, x, part, head, weights)

    def _text_logits(self, texts: Any, task: str, options: Options) -> np.ndarray:
        """The logits (B, K) of a head that gives one row per text."""
        cuts: list[TruncationWarning] = []
        total, windows = self._runner.windows(texts, cuts)
        out = np.empty((total, len(self._head(task).labels)), np.float32)
        for which, _, logits in self._runner.run(windows, total, self._forward(task), options):
            out[which] = logits
        warn_of(cuts)
        return out

    def _window_logits(self, windows: list[Window], task: str, options: Options) -> list[np.ndarray]:
        """Per window of a text the logits (tokens, K) of its tokens."""
        packed = self._runner.packed([window.tokens for window in windows])
        return self._runner.per_text([packed], len(windows), self._forward(task), options._replace(progress=False))

    def _mask(self) -> int:
        if self.config.ids.mask is None:
            raise TaskError(f"{self._name} names no mask token (ids.mask in config.json): ask for logits with positions='all'")
        return self.config.ids.mask

    def _head(self, task: str) -> Any:
        if not isinstance(task, str) or task not in self.tasks:
            raise TaskError(f"{self._name} has no {task if isinstance(task, str) else short(task)} head; it has {self._tasks()}")
        return getattr(self.config.tasks, task)

    def _tasks(self) -> str:
        return ", ".join(self.tasks) or "no heads (hidden_states works)"
