"""Comparison of fastinfer's answers with transformers' pipelines. `python tests/parity.py` prints the table of docs/parity.md.

The models are tiny and random, with tokenizers trained here. Each is saved to a folder that both sides open. The oracle is an unchanged
pipeline, with two exceptions. transformers 5 has no pipeline for question answering, so this file has one that follows the documentation
of transformers 4; if that version is installed, its pipeline is the oracle. For vocabularies that do not mark pieces, the words come from
the pre-tokenizers of the tokenizers library.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

import fastinfer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

LIMIT = 64  # tokens of a text
STRATEGIES = ("none", "simple", "first", "average", "max")
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ODD_LABELS = ("O", "B-PER", "I-PER", "S-PER", "E-PER", "PER", "X", "[PAD]", "B-x-y", "I-x-y", "x-y", "I-O")
CLASSES = ("bad", "so-so", "good")

TEXTS = [
    "Ada Lovelace lived in London.",
    "Angela Merkel visited Berlin, Paris and Rome!",
    'He said: "Berlin is cold", and left.',
    "“Berlin” and ‘Paris’ are cities (so is Rome!).",
    "Barack Obama's wife met Angela's friend.",
    "(Michelle) [Rome] {Paris} <Oslo>",
    "New York-based Jean-Baptiste Poquelin",
    "London",
    "London\nParis\n\nRome",
    "\nParis is a city",
    "  Paris  is   a city  ",
    "\tAda\tLovelace",
    "Ada 🦊 Lovelace",
    "🦊🦊Berlin🦊",
    "👩‍👩‍👧 in Paris",
    "北京 is the capital of 中国。",
    "私は東京に住んでいます。",
    "José lived in Łódź, near Kraków; Zoë in Düsseldorf.",
    "Crème brûlée in Besançon",
    "The U.S. and the U.K. signed on 3.5.1999 at 10:30.",
    "Prices rose by 5% to $3.50, €4 or £2 a kilo.",
    "B12 and 3D and A4 paper",
    "don't, can't, o'clock",
    "e-mail: ada@lovelace.org, see https://example.org/a?b=c",
    "...",
    "?",
    "a",
    "x y z",
    "ALL CAPITALS IN LONDON",
    "mIxEd CaSe LoNdOn",
    "Who? Ada! Where? London: there; here -- now",
    "Mr. and Mrs. Smith-Jones, of 12/14 High St., London",
    "the capital of France is Paris, the capital of Italy is Rome",
    "Lovelacelondonparisberlin",
    "a/b\\c_d*e^f~g`h|i",
    "Paris,Rome,Berlin",
    "Rome's, Paris', Berlins'",
    "in London.In Paris.",
    "naïve façade coöperate",
    "Москва is Moscow, Αθήνα is Athens",
    'It was \'London\' and "Paris" ("Rome")',
    "Ada\u00a0Lovelace in\u00a0London",
]
LONG = [
    "Ada Lovelace lived in London, and Angela Merkel visited Berlin, Paris and Rome. " * 9,
    "Jean-Baptiste (Paris) met Michelle's friend; they left Rome for Berlin! " * 7,
]
PLAIN = [  # only letters and spaces, each word once
    "Ada Lovelace lived in London",
    "Angela Merkel visited Berlin and Rome",
    "the capital of France is Paris",
    "Michelle met friends near Oslo",
    "he said that people left",
    "Mr Jones sells paper",
]
QUESTIONS = [
    "Who lived in London?",
    "Where did Ada live?",
    "Which cities are there?",
    "What is the capital of France?",
    "What did he say?",
    "When was it?",
    "Wo wohnt sie?",
]
MASKED = [
    "Paris is the {} of France.",
    "{} is the capital of France.",
    "Ada lived in {}.",
    "Ada lived in {}, near Paris",
    "the ({}) was closed",
    'he said "{}" and left',
    "Ada {}",
    "un{} friends",
    "{}",
    "{} lived in {}.",
    "Ada lived in {} and {} in Rome",
    "Ada's {} in London",
    "café {} Łódź",
    "北京{}中国",
    "a  {}  b",
    "New York-{} people",
    "Rome! {}? Paris",
    "London:{}",
    "he was {} years old in 1999",
    "\n{} city",
    "🦊 {} 🦊",
    "{}ly",
]


class Case(NamedTuple):
    """A tiny model and its tokenizer: its name, the kind of its vocabulary, classes of transformers, options of its config."""

    name: str
    kind: str
    family: str
    options: dict[str, Any]
    token_types: bool = False


SIZE = {"vocab_size": 0, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT_SIZE = SIZE | {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": LIMIT}
ROBERTA_SIZE = BERT_SIZE | {"max_position_embeddings": LIMIT + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DISTILBERT_SIZE = {"vocab_size": 0, "n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 48, "max_position_embeddings": LIMIT}
CASES = [
    Case("BERT", "WordPiece, lower case", "Bert", BERT_SIZE, token_types=True),
    Case("DistilBERT", "WordPiece", "DistilBert", DISTILBERT_SIZE),
    Case("RoBERTa", "byte-level BPE", "Roberta", ROBERTA_SIZE),
    Case("XLM-R", "Unigram, white space split", "XLMRoberta", ROBERTA_SIZE),
    Case("CamemBERT", "Unigram", "Camembert", ROBERTA_SIZE),
]
HEADS = {
    "tag": ("TokenClassification", {"id2label": dict(enumerate(LABELS))}),
    "classify": ("SequenceClassification", {"id2label": dict(enumerate(CLASSES))}),
    "answer": ("QuestionAnswering", {}),
    "fill_mask": ("MaskedLM", {}),
}
ODD = {"id2label": dict(enumerate(ODD_LABELS))}


def tokenizer_of(case: Case) -> transformers.PreTrainedTokenizerFast:
    """The case's tokenizer, trained on the texts of this file."""
    wordpiece = case.kind.startswith("WordPiece")
    cls, sep, pad, unk, mask = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"] if wordpiece else ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    special = [cls, pad, sep, unk, AddedToken(mask, lstrip=not wordpiece, special=True)]
    corpus = [*TEXTS, *LONG, *QUESTIONS, *MASKED]
    if wordpiece:
        raw = tokenizers.Tokenizer(models.WordPiece(unk_token=unk))
        raw.normalizer = normalizers.BertNormalizer(lowercase="lower" in case.kind)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        raw.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    elif case.kind.startswith("byte"):
        raw = tokenizers.Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    else:
        raw = tokenizers.Tokenizer(models.Unigram())
        space = pre_tokenizers.Metaspace(prepend_scheme="always")
        split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
        blank = normalizers.Replace(Regex(r"\s+"), " ")
        raw.normalizer = normalizers.NFKC() if "split" in case.kind else normalizers.Sequence([normalizers.NFKC(), blank])
        raw.pre_tokenizer = split if "split" in case.kind else space
        raw.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(vocab_size=330, special_tokens=special, unk_token=unk)
    trainer.show_progress = False
    raw.train_from_iterator(corpus, trainer)
    ids = {token: raw.token_to_id(token) for token in (cls, sep)}
    if case.kind.startswith("byte"):
        raw.post_processor = processors.RobertaProcessing((sep, ids[sep]), (cls, ids[cls]), trim_offsets=True, add_prefix_space=False)
    else:
        second = "$B:1 [SEP]:1" if wordpiece else "</s> $B </s>"
        raw.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} {second}", special_tokens=list(ids.items())
        )
    names = {"cls_token": cls, "sep_token": sep, "pad_token": pad, "unk_token": unk, "mask_token": mask}
    inputs = ["input_ids", *(["token_type_ids"] if case.token_types else []), "attention_mask"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=LIMIT, model_input_names=inputs, **names)


class Pair(NamedTuple):
    """Both sides of a comparison, from one folder: transformers' model and tokenizer, and fastinfer's model."""

    case: Case
    task: str
    theirs: Any
    tokenizer: transformers.PreTrainedTokenizerFast
    ours: fastinfer.Model


def pair(case: Case, task: str, folder: Path, more: dict[str, Any] | None = None) -> Pair:
    """A random model of the case for a task. Weights are large enough to spread the logits. more: further options of its config."""
    tokenizer = tokenizer_of(case)
    head, options = HEADS[task]
    options = options | (more or {})
    kind = getattr(transformers, f"{case.family}For{head}")
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    model = kind(kind.config_class(**(case.options | options | special | {"vocab_size": len(tokenizer)}))).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, case.name + task)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "word_embeddings" in name else 0.1 if name.endswith("bias") else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + name.lower().endswith("norm.weight"))
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Pair(case, task, model, tokenizer, fastinfer.load(folder, device="cpu", dtype="float32"))


# --- words, for vocabularies that do not mark pieces ---

CUT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Split(Regex(r"[\p{P}\p{S}]"), "isolated"),
        pre_tokenizers.Split(Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"), "isolated"),
    ]
)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without white space at its ends."""
    found = re.search(r"\S(.*\S)?", text[start:end], re.DOTALL)
    return (start + found.start(), start + found.end()) if found else (end, end)


def begins_word(text: str, spans: list[tuple[int, int]], words: list[int | None]) -> list[bool | None]:
    """Per token, whether it begins a word; None for white space that does not belong to a word."""
    cuts = {start for _, (start, _) in CUT.pre_tokenize_str(text)}
    blank = [start == end for start, end in spans]
    begins: list[bool | None] = []
    last = 0  # the end of the token before
    open_blank = False  # whether the token before is white space that began a word
    for i, (start, end) in enumerate(spans):
        if blank[i] and all(blank[j] for j in range(i, len(spans)) if words[j] == words[i]):
            begins.append(None)
        elif blank[i]:
            begins.append(not open_blank)
        else:
            begins.append(not open_blank and start >= last and start in cuts)
        open_blank = blank[i] and begins[i] is not None
        last = end
    return begins


class Words(transformers.TokenClassificationPipeline):
    """The pipeline with the words of begins_word instead of words between spaces."""

    def gather_pre_entities(self, sentence, input_ids, scores, offset_mapping, special_tokens_mask, aggregation_strategy, **more):
        found = super().gather_pre_entities(sentence, input_ids, scores, offset_mapping, special_tokens_mask, aggregation_strategy, **more)
        numbers = self.tokenizer(sentence, truncation=True).word_ids()
        spans = [trimmed(sentence, one["start"], one["end"]) for one in found]
        begins = begins_word(sentence, spans, [numbers[one["index"]] for one in found])
        return [one | {"is_subword": not begin} for one, begin in zip(found, begins, strict=True) if begin is not None]


# --- the oracles, task by task ---


def their_tags(pair: Pair, text: str, strategy: str, *, our_words: bool) -> list[tuple]:
    kind = Words if our_words else transformers.TokenClassificationPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about words that the tokenizer does not have
        found = kind(model=pair.theirs, tokenizer=pair.tokenizer)(text, aggregation_strategy=strategy) if text else []
    spans = [(*trimmed(text, one["start"], one["end"]), one.get("entity_group", one.get("entity")), float(one["score"])) for one in found]
    return [(start, end, label, score, text[start:end]) for start, end, label, score in spans if start < end]


def their_classes(pair: Pair, text: Any) -> list[tuple[str, float]]:
    pipeline = transformers.TextClassificationPipeline(model=pair.theirs, tokenizer=pair.tokenizer)
    given = text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
    found = pipeline(given, top_k=None, truncation=True)
    return [(one["label"], one["score"]) for one in (found[0] if isinstance(found[0], list) else found)]


def their_masks(pair: Pair, text: str, top_k: int) -> list[list[tuple[str, float, str]]]:
    """Per mask, (token, score, text with that mask filled). Decoding decides whether a space precedes the token."""
    tokenizer = pair.tokenizer
    found = transformers.FillMaskPipeline(model=pair.theirs, tokenizer=tokenizer)(text, top_k=top_k)
    ids = tokenizer(text)["input_ids"]
    rows = [row for row, id_ in enumerate(ids) if id_ == tokenizer.mask_token_id]
    answers = []
    for row, place, best in zip(rows, re.finditer(re.escape(tokenizer.mask_token), text), found if len(rows) > 1 else [found], strict=True):
        answers.append([])
        for one in best:
            before = tokenizer.decode(ids[:row])
            joined = tokenizer.decode([*ids[:row], one["token"]])
            assert joined.startswith(before)
            joined = joined[len(before) :]
            shown = one["token_str"]
            if pair.case.kind.startswith("Unigram"):  # its decoder drops the space of a single token
                shown = tokenizer.convert_ids_to_tokens(one["token"]).replace("▁", " ")
            start = text[: place.start()] if joined.startswith(" ") else text[: place.start()].rstrip()
            touching = (start[-1:] + joined[1:2]) if pair.case.kind.startswith("WordPiece") else ""
            if not start or start[-1].isspace() or re.search(r"[^\w]|[\u3040-\u9fff]", touching):
                joined = joined.removeprefix(" ")
            answers[-1].append((shown, one["score"], start + joined + text[place.end() :]))
    return answers


def their_answers(pair: Pair, question: str, context: str, *, top_k: int = 1, none: bool = False, whole: bool = True) -> list[tuple]:
    """Answers of the question answering pipeline of transformers 4, with this project's longest answer and windows."""
    stride = shared(pair, question)
    if hasattr(transformers, "QuestionAnsweringPipeline"):
        pipeline = transformers.QuestionAnsweringPipeline(model=pair.theirs, tokenizer=pair.tokenizer)
        options = {"max_answer_len": 30, "max_seq_len": LIMIT, "doc_stride": stride, "align_to_words": whole}
        found = pipeline(question=question, context=context, top_k=top_k, handle_impossible_answer=none, **options)
        found = found if isinstance(found, list) else [found]
        spans = [(*trimmed(context, one["start"], one["end"]), float(one["score"])) for one in found]
        return [(start, end, score, context[start:end]) for start, end, score in spans]
    return spans_of(pair, question, context, top_k, none, whole, stride, our_words=False)


def shared(pair: Pair, question: str) -> int:
    """The number of tokens that neighbouring windows share."""
    return (LIMIT - len(pair.tokenizer(question, "a")["input_ids"]) + 1) // 2


def spans_of(pair: Pair, question: str, context: str, top_k: int, none: bool, whole: bool, stride: int, *, our_words: bool) -> list[tuple]:
    """Answers by the pipeline's algorithm, over all pairs of tokens.

    our_words  True: for vocabularies that do not mark pieces, use the words of begins_word; and do not add the scores of one text
               in two places, or of one place in two windows
    """
    encoded = pair.tokenizer(question, context, truncation="only_second", max_length=LIMIT, stride=stride, return_overflowing_tokens=True)
    widened = words_of(pair, question, context) if our_words and not pair.case.kind.startswith("WordPiece") else None
    answers: dict[Any, list] = {}
    nothing = []
    for encoding in encoded.encodings:
        start, end = their_span_scores(pair, encoding)
        nothing.append(start[0] * end[0])
        inside = [i for i, side in enumerate(encoding.sequence_ids) if side == 1]
        spans = [(start[i] * end[j], i, j) for i in inside for j in inside if i <= j < i + 30]
        spans.sort(key=lambda span: (-span[0], span[1], span[2]))
        here: dict[Any, list] = {}
        for score, i, j in spans[: 2 * top_k + 10 if whole else top_k]:
            first, last = encoding.offsets[i][0], encoding.offsets[j][1]
            if whole and widened is None:
                first = encoding.word_to_chars(encoding.token_to_word(i), 1)[0]
                last = encoding.word_to_chars(encoding.token_to_word(j), 1)[1]
            elif whole:
                first = widened.get(encoding.offsets[i], (first,))[0]
                last = widened.get(encoding.offsets[j], (last,))[-1]
            span = trimmed(context, first, last)
            if our_words and span[0] < span[1]:
                here.setdefault(span, [0.0, *span])[0] += score
            elif not our_words:
                answers.setdefault(context[first:last].lower(), [0.0, *span])[0] += score
        for span, (score, *_) in here.items():
            answers[span] = [max(score, answers.get(span, [0.0])[0]), *span]
    found = [*answers.values(), *([[min(nothing), 0, 0]] if none else [])]
    found.sort(key=lambda answer: -answer[0])
    return [(first, last, score, context[first:last]) for score, first, last in found[:top_k]]


def their_span_scores(pair: Pair, encoding: Any) -> tuple[list[float], list[float]]:
    """The probabilities that each token is an answer's start, and its end. They cover the first token and the context."""
    inputs = {"input_ids": torch.tensor([encoding.ids])}
    if pair.case.token_types:
        inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
    with torch.no_grad():
        said = pair.theirs(**inputs)
    masked = torch.tensor([i > 0 and side != 1 for i, side in enumerate(encoding.sequence_ids)])
    start, end = (x[0].double().masked_fill(masked, -1e4).softmax(-1).tolist() for x in (said.start_logits, said.end_logits))
    return start, end


def words_of(pair: Pair, question: str, context: str) -> dict[tuple[int, int], tuple[int, int]]:
    """{offsets of a token: (start, end) of its word} for the tokens of the context."""
    whole = pair.tokenizer(question, context).encodings[0]
    inside = [i for i, side in enumerate(whole.sequence_ids) if side == 1]
    spans = [trimmed(context, *whole.offsets[i]) for i in inside]
    groups: list[list[int]] = []
    for place, begins in enumerate(begins_word(context, spans, [whole.word_ids[i] for i in inside])):
        if begins:
            groups.append([place])
        elif begins is False:
            groups[-1].append(place)
    found = {}
    for group in groups:
        start = next(spans[place][0] for place in group if spans[place][0] < spans[place][1])
        found |= {whole.offsets[inside[place]]: (start, spans[group[-1]][1]) for place in group}
    return found


# --- the comparison ---


def close(ours: list[tuple], theirs: list[tuple], score: int) -> tuple[bool, float]:
    """(whether the answers without scores are equal, the largest difference of scores). score: its index in an answer."""
    plain = [[(*one[:score], *one[score + 1 :]) for one in side] for side in (ours, theirs)]
    return plain[0] == plain[1], max((abs(a[score] - b[score]) for a, b in zip(ours, theirs, strict=False)), default=0.0)


def tags(pair: Pair, strategy: str, *, our_words: bool) -> list[tuple[str, bool, float]]:
    """(text, equal, difference) of each text."""
    answers = pair.ours.tag(TEXTS, strategy=strategy)
    return [
        (text, *close(ours, their_tags(pair, text, strategy, our_words=our_words), 3)) for text, ours in zip(TEXTS, answers, strict=True)
    ]


def classes(pair: Pair) -> list[tuple[Any, bool, float]]:
    texts = [*TEXTS, *LONG, *zip(TEXTS, reversed(TEXTS), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastinfer.tokenizer.TruncationWarning)
        answers = pair.ours.classify(texts)
    return [(text, *close(ours, their_classes(pair, text), 1)) for text, ours in zip(texts, answers, strict=True)]


def asked() -> list[tuple[str, str]]:
    return [(QUESTIONS[i % len(QUESTIONS)], text) for i, text in enumerate([*TEXTS, *LONG])]


def answers(pair: Pair, *, our_words: bool, **options: Any) -> list[tuple[Any, bool, float]]:
    questions, contexts = zip(*asked(), strict=True)
    told = {"top_k": options.get("top_k", 1), "no_answer": options.get("none", False), "whole_words": options.get("whole", True)}
    found = []
    for question, context, ours in zip(questions, contexts, pair.ours.answer(questions, contexts, **told), strict=True):
        if our_words:
            rest = (told["top_k"], told["no_answer"], told["whole_words"], shared(pair, question))
            theirs = spans_of(pair, question, context, *rest, our_words=True)
        else:
            theirs = their_answers(pair, question, context, **options)
        found.append(((question, context), *close(ours, theirs, 2)))
    return found


def masks(pair: Pair, top_k: int = 5) -> list[tuple[str, bool, float]]:
    texts = [text.replace("{}", pair.tokenizer.mask_token) for text in MASKED]
    found = []
    for text, answer in zip(texts, pair.ours.fill_mask(texts, top_k=top_k), strict=True):
        each = [close(ours, theirs, 1) for ours, theirs in zip(answer, their_masks(pair, text, top_k), strict=True)]
        found.append((text, all(equal for equal, _ in each), max(difference for _, difference in each)))
    return found


def rows() -> Iterator[tuple[str, ...]]:
    """The rows of the table: task, tokenizer, oracle, number of texts, of equal answers, largest difference of scores."""
    for case in CASES:
        for task in HEADS:
            with tempfile.TemporaryDirectory() as folder:
                both = pair(case, task, Path(folder))
            for name, oracle, found in compared(both):
                equal = sum(same for _, same, _ in found)
                apart = max((difference for _, same, difference in found if same), default=0.0)
                yield name, f"{case.name} ({case.kind})", oracle, str(len(found)), str(equal), f"{apart:.1e}"


def compared(both: Pair) -> Iterator[tuple[str, str, list[tuple[Any, bool, float]]]]:
    """Each comparison as (its name, the oracle, (text, equal, difference) per text)."""
    if both.task == "tag":
        for strategy in STRATEGIES:
            yield f"tag, {strategy}", "pipeline", tags(both, strategy, our_words=False)
            if strategy not in ("none", "simple") and not both.case.kind.startswith("WordPiece"):
                yield f"tag, {strategy}", "pipeline, our words", tags(both, strategy, our_words=True)
    elif both.task == "classify":
        yield "classify", "pipeline", classes(both)
    elif both.task == "fill_mask":
        yield "fill_mask", "pipeline", masks(both)
    else:
        for name, options in ANSWERS.items():
            yield name, "pipeline of 4", answers(both, our_words=False, **options)
            yield name, "the same, our words", answers(both, our_words=True, **options)


ANSWERS: dict[str, dict[str, Any]] = {
    "answer": {},
    "answer, no_answer": {"none": True},
    "answer, top 3": {"top_k": 3},
    "answer, any token": {"whole": False},
}

if __name__ == "__main__":
    torch.set_num_threads(1)  # several threads slow models this small
    print("| task | tokenizer | oracle | texts | equal | scores apart |\n|---|---|---|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |", flush=True)
