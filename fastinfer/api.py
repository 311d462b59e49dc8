"""load() and Model: texts in, answers out."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import backends, checkpoint, heads
from .batch import PackedBatch
from .catalog import folder_of, lasting_name
from .embedder import Embedder
from .errors import InputError, TaskError, about, check_flag, check_int, near, short
from .inside import Inside
from .origin import How, Origin, same_folder
from .precision import check_precision, in_precision
from .progress import Show
from .retrieval import EmbedSparse
from .run import Options, Replica, positive
from .span_finder import SpanFinder
from .sparse_embedder import SparseEmbedder
from .token_embedder import TokenEmbedder
from .tokenizer import Tokenizer, TruncationWarning, as_text, as_texts, present, present_singles, warn_of
from .values import EmbedOptions, Filled, Found, Labels, Missing, Singles, Span, Texts, Vectors
from .zero_shot import ZeroShot

if TYPE_CHECKING:
    from typing_extensions import Unpack  # which typing has since Python 3.11

__all__ = ["Model", "load"]


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

    path_or_name  the folder, or the name of a model that ships inside the package; None: the first such model. Else a str such as org/name
                  or org/name@revision is a model on the hub: from the local hub cache, or downloaded into it
    device        "auto" (a usable GPU, else the compiled CPU backend, else NumPy), "cpu", "cpu:ISA", "cuda", "cuda:N", "numpy"; or a list
                  of these: each device gets the model, and they take batches in turn
    dtype         dtype to compute in: None (as the checkpoint suggests), "float32", "bfloat16", "int8" or "float16", which without a GPU
                  is float32, with a BackendWarning; sums are float32
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
    depth = None if max_depth is None else check_int("max_depth", max_depth, 0)
    if not isinstance(device, str) and not (isinstance(device, Sequence) and device):
        raise InputError(f"device is {short(device)}, expected a string such as 'cpu', or a list of them")
    if validate is not None:
        check_flag("validate", validate)
    check_flag("copy", copy)
    how = How(device if isinstance(device, str) else tuple(device), dtype, threads, depth, validate, copy)
    return _opened(*lasting_name(path_or_name, folder), folder, how)


def _opened(kind: str, name: str, folder: Path, how: How) -> Model:
    """The Model in a folder. kind, name: the folder's catalog.lasting_name()."""
    names = [how.device] if isinstance(how.device, str) else how.device
    devices = [backends.get(device, dtype=how.dtype, threads=how.threads) for device in names]
    with checkpoint.unchanged(folder) as stamps:
        config, stored, found = checkpoint.load_all(folder, validate=how.validate, copy=how.copy)
        tokenizer = Tokenizer(found.file, config) if found.file else None
        nbytes = sum(t.nbytes for t in stored.values())
        sampled = checkpoint.samples(stored)  # before prepare() lets go of what it packs
        with about(str(folder)):
            sizes = config.hidden, config.heads, stored["layers.0.attention.qkv.weight"].dtype
            fitted = [ops.fitted(*sizes) for ops in devices]
            replicas = [Replica(ops, ops.prepare(config, stored, how.max_depth)) for ops in fitted]
    origin = Origin(kind, name, Path(name) if kind == "folder" else folder, stamps, how)
    mark = functools.partial(checkpoint.fingerprint, config, sampled, how.max_depth)
    return Model(config, replicas, tokenizer, str(folder), nbytes, found.about, origin, mark)


def _reopened(kind: str, name: str, stamps: Any, digest: str, how: How) -> Model:
    """The Model that a pickle stands for. The parameters are those that Origin.kept() gave."""
    with same_folder(kind, name, stamps, digest) as folder:
        return _opened(kind, name, folder, how)


class Model(Inside):
    """A loaded model, made by load(). Several threads may use it at once.

    config     the architecture (fastinfer.config.Config)
    tasks      names of its heads, some of embed, fill_mask, classify, tag, answer
    tokenizer  fastinfer.tokenizer.Tokenizer, or None for a checkpoint without tokenizer.json
    nbytes     bytes of the stored weights
    fingerprint  a text that another model does not have; an Index holds it

    Every `texts` argument is a text or a batch of texts. A text is a str or a pair (str, str); a single
    text is a batch of one and still gives a batch back. A batch is any iterable that holds its texts in
    order: a list, an iterator, a NumPy array, a pandas Series; not a table, a dict or a set. A tuple of
    two str is a pair; where pairs have no meaning (tag, answer, rank) it is a batch. A PackedBatch of ids
    is accepted too, except by the tasks that give back text. tag and answer read long texts in windows.
    The other methods cut texts over config.max_tokens tokens. They then give one
    fastinfer.tokenizer.TruncationWarning per call, which names the line of the call.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, self._kept()

    # --- tasks ---

    @overload
    def embed(self, texts: Texts, *, precision: Literal["float32"] = ..., **options: Unpack[EmbedOptions]) -> Vectors: ...

    @overload
    def embed(self, texts: Texts, *, precision: Literal["float16"], **options: Unpack[EmbedOptions]) -> NDArray[np.float16]: ...

    @overload
    def embed(self, texts: Texts, *, precision: Literal["int8", "binary"], **options: Unpack[EmbedOptions]) -> NDArray[np.int8]: ...

    @overload
    def embed(self, texts: Texts, *, precision: Literal["ubinary"], **options: Unpack[EmbedOptions]) -> NDArray[np.uint8]: ...

    @overload
    def embed(self, texts: Texts, *, precision: str, **options: Unpack[EmbedOptions]) -> NDArray[Any]: ...

    def embed(
        self,
        texts: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        na: Missing = "raise",
        precision: str = "float32",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> Any:
        """One vector per text: (B, dim) float32, made as the checkpoint says.

        prompt        a text to put before each text; prompt_name: the name of one of the model's. None: the model's default, if any
        normalize     scale each vector to length 1; None: as the checkpoint says
        dim           keep this many numbers of a vector, and scale again if vectors have length 1; None: as the checkpoint says
        na            what becomes of missing texts (None, NaN, pandas.NA): "raise" an error, take them as "empty" texts, or "skip" them,
                      which gives a vector of NaN
        precision     "float32"; "float16"; "int8": each vector times what makes its largest number 127 or -127, rounded; "binary" (int8) or
                      "ubinary" (uint8): a bit for each number, set if it is positive, eight a byte, as sentence-transformers packs them
        batch_tokens  most tokens per packed batch (a longer text is a batch by itself); None: the device's default
        progress      show a progress bar on standard error; or a function that is called with (texts that are done, all texts)
        """
        embedder = self._embedder()
        check_precision(precision)
        texts, missing = present(texts, na)
        if missing and not precision.startswith("float"):
            raise InputError(f"na is 'skip' and texts[{missing[0]}] is missing, but {precision} has no NaN: take float32 or float16")
        cuts: list[TruncationWarning] = []
        wanted = embedder.wanted(texts, normalize, dim, prompt, prompt_name)
        out = embedder.embed(texts, wanted, Options(batch_tokens, threads, progress), cuts)
        warn_of(cuts)
        if missing:
            out[missing] = np.nan
        return in_precision(out, precision)

    def embed_iter(
        self,
        texts: Texts,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
    ) -> Iterator[Vectors]:
        """embed() for a stream of any length: yields one (dim,) vector per text, in order, holding a bounded number of texts.

        One TruncationWarning at the end covers all texts that were cut.
        """
        embedder = self._embedder()
        wanted = embedder.wanted(texts, normalize, dim, prompt, prompt_name)
        yield from embedder.stream(texts, wanted, Options(batch_tokens, threads), na)

    def _embedder(self) -> Embedder:
        return Embedder(self._head("embed"), self._runner)

    def embed_sparse(
        self, texts: Texts, *, na: Missing = "raise", batch_tokens: int | None = None, threads: int | None = None, progress: Show = False
    ) -> Any:
        """A scipy.sparse.csr_array (B, V) float32 of SPLADE weights: a row per text, a column per token of the vocabulary.

        Any model with a fill_mask head has them. Pooling and activation are those of its embed_sparse head, else the largest
        log(1 + relu(logit)) over the tokens of a text. Only a model that was trained for it gives weights worth having.
        """
        texts, missing = present(texts, na)
        return self._sparse_embedder().embed(texts, Options(batch_tokens, threads, progress), missing)

    def embed_tokens(
        self,
        texts: Singles | PackedBatch,
        *,
        query: bool = False,
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> list[Vectors]:
        """Per text its vectors (tokens, dim) float32, one per token, as ColBERT compares them.

        query  the texts are queries: they get the marker of queries and are filled up with mask tokens, as the checkpoint says. Else
               they are documents: they get theirs, and tokens that the checkpoint skips, such as punctuation, have no vector

        Texts are single, not pairs. The ids of a PackedBatch get no marker and are not filled up.
        """
        check_flag("query", query)
        texts, missing = present(texts, na) if isinstance(texts, PackedBatch) else present_singles(texts, na)
        answers = self._token_embedder().embed(texts, query, Options(batch_tokens, threads, progress))
        for i in missing:
            answers[i] = answers[i][:0]
        return answers

    def _token_embedder(self) -> TokenEmbedder:
        return TokenEmbedder(self._head("embed_tokens"), self._runner)

    def _sparse_embedder(self) -> SparseEmbedder:
        return SparseEmbedder(self.config.tasks.embed_sparse or EmbedSparse(), self._head("fill_mask"), self._runner)

    def classify(
        self,
        texts: Texts,
        *,
        labels: Sequence[str] | None = None,
        template: str = "This example is {}.",
        multi_label: bool = False,
        top_k: int | None = None,
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> list[Labels]:
        """Per text a list of (label, score), best first, at most top_k; for a model of one label, a float per text.

        labels       names of your own for a model of natural language inference (zero-shot): a label's score says how well the text
                     entails the template with the label in it. Texts are then single, not pairs; a long text is cut, the template is not
        template     a sentence with {} where the label goes
        multi_label  several labels may be right: each gets its own probability; False: the scores of a text add up to 1
        na           as in embed(); the answer to a text that is skipped is an empty list or NaN

        Raises TaskError where labels are given and no class of the model begins with "entail".
        """
        head, options = self._head("classify"), Options(batch_tokens, threads, progress)
        top_k = positive("top_k", top_k)
        texts, missing = present(texts, na) if labels is None else present_singles(texts, na)
        if labels is None:
            answers = heads.classify.decode(self._text_logits(texts, "classify", options), head, top_k)
        else:
            zero_shot = ZeroShot(head, self._runner, self._forward("classify"))
            answers = zero_shot.classify(texts, labels, template, check_flag("multi_label", multi_label), top_k, options)
        return heads.classify.without(answers, missing)

    def fill_mask(
        self,
        texts: Texts,
        *,
        top_k: int = 5,
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> list[list[list[Filled]]]:
        """Per text, per mask token: the top_k (token, score, text with that mask filled), best first.

        na  as in embed(); the answer to a text that is skipped is an empty list

        Raises InputError for a text without the model's mask token (shown in the message).
        """
        self._head("fill_mask")
        best_k = positive("top_k", top_k)
        tokenizer, mask, options = self._runner.tokenizer("fill_mask"), self._mask(), Options(batch_tokens, threads, progress)
        texts, skipped = present(texts, na)
        missing = set(skipped)
        cuts: list[TruncationWarning] = []

        def fill(texts: list[Any], first: int) -> list[Any]:
            encodings = tokenizer.encode(texts, cuts=cuts)
            places = [[row for row, id_ in enumerate(encoding.ids) if id_ == mask] for encoding in encodings]
            for i, rows in enumerate(places):
                if not rows and first + i not in missing:
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
        texts: Singles,
        *,
        strategy: str = "first",
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> list[list[Span]]:
        """Per text its tagged spans: (start, end, label, score, text[start:end]), character offsets, in reading order.

        strategy  how a word gets its tag: "first", from its first token; "average", from the mean of its tokens' probabilities; "max",
                  from its most certain token. "simple" tags each token by itself: it suits languages without spaces, and may cut words.
                  "none" does so, too, and merges nothing: each token has a span with its whole label, such as "B-PER"
        na        as in embed(); a text that is skipped has no spans

        The score is the mean probability of a span's words or tokens. A long text is read in windows that overlap, and one of over 262,144
        characters in parts of this size, so that memory is bounded; no span reaches across two parts. Texts are single, not pairs.
        """
        head = self._head("tag")
        finder, options = SpanFinder(self._runner, self._forward("tag")), Options(batch_tokens, threads, progress)
        if not isinstance(strategy, str) or strategy not in heads.tag.STRATEGIES:
            known = ", ".join(map(repr, heads.tag.STRATEGIES))
            raise InputError(f"strategy is {short(strategy)}, expected one of {known}{near(strategy, heads.tag.STRATEGIES)}")
        texts, missing = present_singles(texts, na)
        answers = finder.tag(texts, head, strategy, options)
        for i in missing:
            answers[i] = []
        return answers

    def answer(
        self,
        questions: Singles,
        contexts: Singles,
        *,
        top_k: int | None = 1,
        no_answer: bool = False,
        whole_words: bool = True,
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> list[list[Found]]:
        """Per question its top_k answers (None: all) in its context: (start, end, score, context[start:end]), best first.

        questions, contexts: a str each, or lists of equal length. A long context is read in windows that overlap, and one of over 262,144
        characters in parts of this size, as tag() reads it.
        The score is the product of the start's and the end's probability within its window.

        no_answer    include (0, 0, score, "") among the answers, for "no answer"; for models that were trained on such questions
        whole_words  widen answers to whole words, and add up the scores of answers that become equal; False: answers end at any token
        na           as in embed(); where the question or the context is missing, "skip" gives no answers

        Raises InputError for an empty question and, without no_answer, for an empty context.
        """
        finder, options = SpanFinder(self._runner, self._forward("answer")), Options(batch_tokens, threads, progress)
        top_k = positive("top_k", top_k) or sys.maxsize
        questions, gaps = present_singles(questions, na, "questions")
        contexts, more = present_singles(contexts, na, "contexts")
        if len(questions) != len(contexts):
            raise InputError(f"got {len(questions)} questions and {len(contexts)} contexts, expected one context per question")
        if check_flag("no_answer", no_answer) and self.config.ids.cls is None:
            raise InputError(f"no_answer: {self._name} names no token that stands for no answer (ids.cls in config.json)")
        check_flag("whole_words", whole_words)
        return finder.answer(questions, contexts, {*gaps, *more}, top_k, no_answer, whole_words, options)

    def rank(
        self,
        query: str,
        documents: Singles,
        *,
        top_k: int | None = None,
        dim: int | None = None,
        na: Missing = "raise",
        batch_tokens: int | None = None,
        threads: int | None = None,
        progress: Show = False,
    ) -> list[tuple[int, float]]:
        """(index of the document, score), best first: the similarity of embeddings, or the score of a classify head with one label.

        Embeddings are made with the model's prompts "query" and "document", if any; a distance is multiplied by -1. Without an embed
        head, an embed_tokens head adds up the best match of each token of the query (MaxSim), and an embed_sparse head compares sparse
        vectors, by the dot product or as the checkpoint says.

        documents  a batch of str; a tuple of str is a batch, too
        dim        compare the first numbers of each vector, so many; None: as the checkpoint says
        na         as in embed(); documents that are skipped are not in the ranking
        """
        if not isinstance(as_text(query, "query"), str):
            raise InputError("query is a pair, expected a str")
        top_k = positive("top_k", top_k)
        documents, missing = present_singles(documents, na, "documents")
        options = Options(batch_tokens, threads, progress)
        if self.config.tasks.embed:
            scores = self._embedder().scores(query, documents, dim, options)
        elif dim is not None:
            raise TaskError(f"dim shortens vectors, but {self._name} has no embed head, only {self._tasks()}")
        elif self.config.tasks.embed_tokens:
            scores = self._token_embedder().scores(query, documents, options)
        elif self.config.tasks.embed_sparse:
            scores = self._sparse_embedder().scores(query, documents, options)
        elif self.config.tasks.classify and len(self.config.tasks.classify.labels) == 1:
            logits = self._text_logits([(query, document) for document in documents], "classify", options)
            scores = heads.classify.relevance(logits, self.config.tasks.classify)
        else:
            raise TaskError(
                f"{self._name} cannot rank: it has no embed, embed_tokens or embed_sparse head, "
                f"and no classify head of one label, only {self._tasks()}"
            )
        return heads.common.ranked(scores, top_k, missing)
