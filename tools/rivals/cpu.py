"""Engines of others on the CPU: PyTorch, onnxruntime and, for whole models, OpenVINO, CTranslate2, sentence-transformers and fastembed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastinfer
from fastinfer import checkpoint
from fastinfer.bench.engines import EmbedTexts, Encode, Engine
from fastinfer.bench.models import read_tokenizer
from fastinfer.bench.rivals import Dense, Product, Rivals
from fastinfer.bench.timing import Run

COMPILE_SECONDS = 60
CALIBRATION = 300  # paragraphs, as many as NNCF takes by default
DOCUMENTS = Path(__file__).parents[2] / "docs"


def torch_dense(dtype_name: str) -> Dense:
    """torch.nn.functional: linear, exact GELU, linear, in inference mode."""

    def make(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        dtype = getattr(torch, dtype_name)
        first, bias, second = (torch.from_numpy(a.copy()).to(dtype) for a in (w1, b1, w2))
        functional = torch.nn.functional

        def run(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                middle = functional.gelu(functional.linear(torch.from_numpy(x).to(dtype), first, bias))
                return functional.linear(middle, second).float().numpy()

        return run

    return make


def torch_product(dtype_name: str) -> Product:
    """One linear layer; the input is converted before, so that the product alone is timed."""

    def make(weight: np.ndarray, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        dtype = getattr(torch, dtype_name)
        matrix = torch.from_numpy(weight.copy()).to(dtype)
        inputs: dict[int, torch.Tensor] = {}

        def run(x: np.ndarray) -> None:
            given = inputs.setdefault(id(x), torch.from_numpy(x).to(dtype))
            with torch.inference_mode():
                torch.nn.functional.linear(given, matrix)

        return run

    return make


def onnxruntime_dense(w1: np.ndarray, b1: np.ndarray, w2: np.ndarray, threads: int) -> Run:
    """MatMul, Add, Gelu (opset 20, exact), MatMul."""
    import onnx
    import onnxruntime

    helper = onnx.helper
    arrays = {"w1": np.ascontiguousarray(w1.T), "b1": b1, "w2": np.ascontiguousarray(w2.T)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Add", ["a", "b1"], ["b"]),
            helper.make_node("Gelu", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "w2"], ["y"]),
        ],
        "dense",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["t", w1.shape[1]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["t", w2.shape[0]])],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else its threads spin into the others' turns
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def installed() -> Rivals:
    """The rivals that can be imported here."""
    dense: dict[str, Dense] = {}
    products: dict[str, Product] = {}
    left_out: dict[str, str] = {}
    try:
        import torch

        dense |= {f"torch {torch.__version__} f32": torch_dense("float32"), f"torch {torch.__version__} bf16": torch_dense("bfloat16")}
        products |= {"torch f32": torch_product("float32"), "torch bf16": torch_product("bfloat16")}
    except ImportError as error:
        left_out["torch"] = str(error)
    try:
        import onnx  # noqa: F401
        import onnxruntime

        dense[f"ort {onnxruntime.__version__} f32"] = onnxruntime_dense
    except ImportError as error:
        left_out["onnxruntime"] = str(error)
    return Rivals(dense=dense, products=products, models=models, left_out=left_out)


# --- whole models: each load function stands alone, since a fresh process runs its source --------------------------------


def load_onnxruntime(path: str, threads: int) -> Encode:
    """onnxruntime with an ONNX file."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    types = {i.name: "int32" if "int32" in i.type else "int64" for i in session.get_inputs()}

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
        return session.run(None, {name: given[name].astype(t, copy=False) for name, t in types.items()})[0]

    return encode


def load_openvino(path: str, precision: str, threads: int) -> Encode:
    """OpenVINO with a model file; precision: f32 or bf16."""
    import numpy as np
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
    return lambda ids, mask=None: request.infer([ids, np.ones_like(ids) if mask is None else mask])[0]


def load_ctranslate2(path: str, compute_type: str, threads: int) -> Encode:
    """CTranslate2 with a converted folder."""
    import ctranslate2
    import numpy as np

    encoder = ctranslate2.Encoder(path, compute_type=compute_type, intra_threads=threads)

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        rows = ids.tolist() if mask is None else [row[: m.sum()].tolist() for row, m in zip(ids, mask, strict=True)]
        return np.array(encoder.forward_batch(rows).last_hidden_state)

    return encode


def load_torch(path: str, dtype: str, compiled: bool, threads: int) -> Encode:
    """transformers' model of a folder, with SDPA."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(path, add_pooling_layer=False, attn_implementation="sdpa").eval().to(getattr(torch, dtype))
    if compiled:
        model = torch.compile(model)

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        with torch.inference_mode():
            mask = None if mask is None else torch.from_numpy(mask)
            return model(torch.from_numpy(ids), mask).last_hidden_state.float().numpy()

    return encode


def load_sentence_transformers(path: str, limit: int, threads: int) -> Encode:
    """sentence-transformers with a folder: its own `encode` is at `whole`."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.set_num_threads(threads)
    body = models.Transformer(path, max_seq_length=limit)
    whole = SentenceTransformer(modules=[body, models.Pooling(body.get_word_embedding_dimension())], device="cpu")

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        with torch.inference_mode():
            given = torch.from_numpy(ids)
            mask = torch.ones_like(given) if mask is None else torch.from_numpy(mask)
            return body({"input_ids": given, "attention_mask": mask})["token_embeddings"].float().numpy()

    encode.whole = whole
    return encode


def load_fastembed(path: str, hidden: int, threads: int) -> Encode:
    """fastembed with a folder: its own `embed` is at `whole`."""
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    if path not in [known["model"] for known in TextEmbedding.list_supported_models()]:
        source = ModelSource(hf=path)  # which it does not look for, since the folder is there
        TextEmbedding.add_custom_model(path, PoolingType.MEAN, False, source, hidden, model_file="model.onnx")
    whole = TextEmbedding(path, threads=threads, specific_model_path=path)
    session = whole.model.model

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask})[0]

    encode.whole = whole
    return encode


FUSED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")  # model types whose attention onnxruntime fuses into one operator


def export_onnx(folder: Path, out: Path) -> None:
    """out/model.onnx, and model_opt.onnx with fused norms and GELU, and with fused attention for the families that onnxruntime fuses."""
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()  # the form that gets fused

    class LastHidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids, names = torch.ones(2, 16, dtype=torch.int64), ["input_ids", "attention_mask"]
    axes = {name: {0: "b", 1: "s"} for name in (*names, "h")}
    plain = str(out / "model.onnx")
    torch.onnx.export(
        LastHidden(), (ids, ids), plain, input_names=names, output_names=["h"], dynamic_axes=axes, opset_version=17, dynamo=False
    )
    config = model.config
    fused = optimizer.optimize_model(
        plain, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
    )
    found = fused.get_fused_operator_statistics().get("Attention")
    if config.model_type in FUSED and found != config.num_hidden_layers:
        raise RuntimeError(f"the graph was not fused: {fused.get_fused_operator_statistics()}")
    fused.save_model_to_file(str(out / "model_opt.onnx"))


def quantize_onnx(out: Path) -> None:
    """out/model_int8.onnx: dynamic int8 of model_opt.onnx."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    extra = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(out / "model_opt.onnx", out / "model_int8.onnx", weight_type=QuantType.QInt8, per_channel=True, extra_options=extra)


def convert_openvino(out: Path) -> None:
    """out/ov.xml, from model.onnx."""
    import openvino

    openvino.save_model(openvino.Core().read_model(str(out / "model.onnx")), str(out / "ov.xml"), compress_to_fp16=False)


def calibration(folder: Path) -> list[np.ndarray]:
    """Rows of ids (1, S) int64 for OpenVINO's int8: paragraphs of this project's documents or, without a tokenizer, random tokens."""
    if not (folder / "tokenizer.json").exists():
        rng = np.random.default_rng(0)
        return [rng.integers(1000, 30000, (1, 128)) for _ in range(8)]
    text = "\n\n".join(page.read_text() for page in sorted(DOCUMENTS.rglob("*.md")))
    paragraphs = [part for part in text.split("\n\n") if len(part) > 100 and part[0].isalpha()]
    tokenizer = read_tokenizer(folder / "tokenizer.json", 128)
    return [np.array([found.ids]) for found in tokenizer.encode_batch(paragraphs[:: max(1, len(paragraphs) // CALIBRATION)][:CALIBRATION])]


def quantize_openvino(folder: Path, out: Path) -> None:
    """out/ov_int8.xml, from model.onnx: NNCF, static, for transformers, its scales from calibration()."""
    import nncf
    import openvino

    samples = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in calibration(folder)]
    options = {"model_type": nncf.ModelType.TRANSFORMER, "preset": nncf.QuantizationPreset.MIXED, "subset_size": len(samples)}
    read = openvino.Core().read_model(str(out / "model.onnx"))
    openvino.save_model(nncf.quantize(read, nncf.Dataset(samples), **options), str(out / "ov_int8.xml"))


def convert_ctranslate2(folder: Path, out: Path) -> None:
    """out/ct2, from a folder in the Hugging Face layout."""
    import ctranslate2

    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(out / "ct2"), force=True)


def folder_for_fastembed(folder: Path, file: Path, out: Path, limit: int) -> None:
    """`out`, as fastembed reads it: an ONNX file, the tokenizer, and what a published model says of it."""
    out.mkdir()
    for found, name in ((file, "model.onnx"), (folder / "tokenizer.json", "tokenizer.json"), (folder / "config.json", "config.json")):
        shutil.copy(found, out / name)
    tokens = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (out / "special_tokens_map.json").write_text(json.dumps(tokens))
    (out / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit, "max_length": limit, **tokens}))


def try_compiling(folder: Path, dtype: str, threads: int) -> None:
    """Compile once in another process, for the time it takes and for inductor's cache."""
    code = (
        "import sys, numpy\n"
        "from rivals.cpu import load_torch\n"
        "load_torch(sys.argv[1], sys.argv[2], True, int(sys.argv[3]))(numpy.ones((1, 16), 'i8'))"
    )
    command = [sys.executable, "-c", code, str(folder), dtype, str(threads)]
    folders = [str(Path(module).parents[1]) for module in (__file__, fastinfer.__file__)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run(command, timeout=COMPILE_SECONDS, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1])


def embed_sentences(encode: Encode, tokenizer: object) -> EmbedTexts:
    """sentence-transformers' own encode: it sorts the texts by length, and pads batches of 32."""
    return lambda texts: encode.whole.encode(texts, batch_size=32)


def embed_fastembed(encode: Encode, tokenizer: object) -> EmbedTexts:
    """fastembed's own embed, in padded batches of 32 as the texts come."""
    return lambda texts: np.stack(list(encode.whole.embed(texts, batch_size=32)))


class Finder:
    """Makes engines of those rivals that are wanted and run here, their files ready in `cache`; left_out tells of the others."""

    def __init__(self, cache: Path, wanted: Callable[[str], bool], left_out: dict[str, str]) -> None:
        self._cache, self._wanted, self._left_out = cache, wanted, left_out

    def engine(
        self,
        name: str,
        dtype: str,
        package: str,
        load: Callable[..., Encode],
        arguments: tuple[Any, ...],
        *needs: tuple[str, Callable[[], None]],
        also: tuple[str, ...] = (),
        embed: Callable[[Encode, Any], EmbedTexts] | None = None,
    ) -> Iterator[Engine]:
        """The engine, or nothing.

        needs  (a file of the cache, what makes it), in order; where nothing is written, an empty file says that it was done
        also   packages beside `package`
        """
        if not self._wanted(f"{name} dense {dtype}"):
            return
        try:
            importlib.import_module(package.replace("-", "_"))
            for made, prepare in needs:
                if not (self._cache / made).exists():
                    print(f"preparing {made} ...", file=sys.stderr, flush=True)
                    with contextlib.redirect_stdout(sys.stderr):
                        prepare()
                    if not (self._cache / made).exists():
                        (self._cache / made).touch()
        except Exception as error:  # whatever keeps a rival from running is told
            message = str(error).strip()
            self._left_out[f"{name} {dtype}"] = f"{type(error).__name__}: {message.splitlines()[0] if message else ''}"
            return
        yield Engine(name, "dense", dtype, load, arguments, (package, *also), embed)


def models(folder: Path, cache: Path, threads: int, wanted: Callable[[str], bool], left_out: dict[str, str]) -> Iterator[Engine]:
    """The rivals that can run the dense model in `folder` (Hugging Face layout) here; each made ready once, in `cache`."""
    if json.loads((folder / "config.json").read_text()).get("model_type") is None:
        left_out["all rivals"] = f"{folder} is in fastinfer's own layout; they read the Hugging Face one"
        return
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.filterwarnings("ignore")
    cache.mkdir(parents=True, exist_ok=True)
    engine = Finder(cache, wanted, left_out).engine
    onnx = ("model_opt.onnx", lambda: export_onnx(folder, cache))
    onnx_int8 = ("model_int8.onnx", lambda: quantize_onnx(cache))
    ov = ("ov.xml", lambda: convert_openvino(cache))
    ov_int8 = ("ov_int8.xml", lambda: quantize_openvino(folder, cache))
    ct2 = ("ct2", lambda: convert_ctranslate2(folder, cache))
    yield from engine("onnxruntime", "float32", "onnxruntime", load_onnxruntime, (str(cache / "model_opt.onnx"), threads), onnx)
    yield from engine("onnxruntime", "int8", "onnxruntime", load_onnxruntime, (str(cache / "model_int8.onnx"), threads), onnx, onnx_int8)
    yield from engine("openvino", "float32", "openvino", load_openvino, (str(cache / "ov.xml"), "f32", threads), onnx, ov)
    yield from engine("openvino", "bfloat16", "openvino", load_openvino, (str(cache / "ov.xml"), "bf16", threads), onnx, ov)
    yield from engine("openvino", "int8", "openvino", load_openvino, (str(cache / "ov_int8.xml"), "f32", threads), onnx, ov_int8)
    mixed = (str(cache / "ov_int8.xml"), "bf16", threads)
    yield from engine("openvino, rest bfloat16", "int8", "openvino", load_openvino, mixed, onnx, ov_int8)
    for dtype in ("float32", "int8"):
        yield from engine("ctranslate2", dtype, "ctranslate2", load_ctranslate2, (str(cache / "ct2"), dtype, threads), ct2)
    for dtype in ("float32", "bfloat16"):
        yield from engine("torch", dtype, "torch", load_torch, (str(folder), dtype, False, threads), also=("transformers",))
        tried = (f"compiled-{dtype}", lambda dtype=dtype: try_compiling(folder, dtype, threads))
        yield from engine("torch compiled", dtype, "torch", load_torch, (str(folder), dtype, True, threads), tried, also=("transformers",))
    if (folder / "tokenizer.json").exists():
        name = "sentence-transformers"
        config = checkpoint.load(folder, validate=False)[0]
        arguments = (str(folder), config.max_tokens, threads)
        yield from engine(name, "float32", name, load_sentence_transformers, arguments, embed=embed_sentences)
        for dtype, file, made in (("float32", "model_opt.onnx", (onnx,)), ("int8", "model_int8.onnx", (onnx, onnx_int8))):
            out = cache / f"fastembed-{dtype}"
            folder_made = (out.name, lambda out=out, file=file: folder_for_fastembed(folder, cache / file, out, config.max_tokens))
            given = (str(out), config.hidden, threads)
            yield from engine("fastembed", dtype, "fastembed", load_fastembed, given, *made, folder_made, embed=embed_fastembed)
