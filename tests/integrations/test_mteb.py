"""MTEB: an evaluation of texts made here, without a network."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from packages import needed

needed("mteb")
needed("datasets")

from mteb.types import PromptType

import fastinfer
from fastinfer.integrations.mteb import FastinferCrossEncoder, FastinferEncoder

pytestmark = pytest.mark.filterwarnings("ignore")

EVALUATE = """
import json, sys
import datasets, mteb
from mteb.abstasks import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from fastinfer.integrations.mteb import FastinferEncoder

folder, texts, others, scores = json.load(sys.stdin)

class Local(AbsTaskSTS):
    metadata = TaskMetadata(
        name="Local", dataset={"path": "none/none", "revision": "1"}, description="none", type="STS", modalities=["text"], category="t2t",
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score="cosine_spearman", reference=None, date=None, domains=None,
        task_subtypes=None, license=None, annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation="",
    )
    min_score, max_score = 0, 1

    def load_data(self, **options):
        columns = {"sentence1": texts, "sentence2": others, "score": scores}
        self.dataset, self.data_loaded = {"default": {"test": datasets.Dataset.from_dict(columns)}}, True

result = mteb.evaluate(FastinferEncoder(folder), Local(), cache=None, show_progress_bar=False)
print(json.dumps([result.model_name, result.task_results[0].scores["test"][0]["cosine_spearman"]]))
"""


class Task:
    """What an encoder reads of a task."""

    name, type = "Local", "STS"


def batches(texts):
    return [{"text": texts[i : i + 5]} for i in range(0, len(texts), 5)]


def test_vectors_have_the_prompt_of_their_kind(embedder, texts, queries, documents):
    made = FastinferEncoder(embedder)

    def encode(kind):
        return made.encode(batches(texts), task_metadata=Task, hf_split="test", hf_subset="default", prompt_type=kind)

    np.testing.assert_array_equal(encode(PromptType.query), queries)
    np.testing.assert_array_equal(encode(PromptType.document), documents)
    np.testing.assert_array_equal(encode(None), fastinfer.load(embedder).embed(texts))
    assert made.mteb_model_meta.embed_dim == 32
    assert made.mteb_model_meta.name.startswith("fastinfer/embedder")
    np.testing.assert_allclose(made.similarity(queries, documents), queries @ documents.T, atol=1e-5)


def test_an_evaluation(embedder, texts):
    others, scores = texts[::-1], np.random.default_rng().random(len(texts))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    given = json.dumps([embedder, texts, others, scores.tolist()])
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE], input=given, capture_output=True, text=True, env=environment, check=True, timeout=180
    )
    name, got = json.loads(done.stdout.splitlines()[-1])
    model = fastinfer.load(embedder)
    stats = needed("scipy.stats")
    want = stats.spearmanr(np.einsum("bd,bd->b", model.embed(texts), model.embed(others)), scores).statistic
    assert got == pytest.approx(want, abs=0.02)
    assert name.startswith("fastinfer/")


def test_a_cross_encoder(cross_encoder, embedder, texts):
    found = FastinferCrossEncoder(cross_encoder).predict(batches(texts), batches(texts[::-1]), task_metadata=Task)
    np.testing.assert_array_equal(found, np.float32(fastinfer.load(cross_encoder).classify(list(zip(texts, texts[::-1], strict=True)))))
    with pytest.raises(fastinfer.TaskError, match="expected a cross-encoder"):
        FastinferCrossEncoder(embedder)
    with pytest.raises(fastinfer.TaskError, match="expected an embedder"):
        FastinferEncoder(cross_encoder)
