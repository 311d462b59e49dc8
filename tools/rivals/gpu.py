"""Engines of others on a GPU: PyTorch's dense layers and whole BERT, compiled and in CUDA graphs; the paper's own FFF layers (arXiv
2311.10770: batched products, and kernels of one thread a token); sentence-transformers.

All run in the process and on the stream of the benchmark.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastinfer import checkpoint
from fastinfer.bench.engines import EmbedTexts, Encode, Engine
from fastinfer.bench.gpu_layers import Make, Rival
from fastinfer.bench.gpu_models import Encoder
from fastinfer.bench.gpu_timing import SETS, Call, Replay, Work, replay
from fastinfer.bench.oracle import TOLERANCE
from fastinfer.bench.rivals import Rivals

from .gpu_work import settings, tensors, torch_dtype, torch_work

DTYPES = ("float16", "bfloat16", "float32", "tf32")
SENTENCE_BATCHES = (32, 1024)  # its default; what suits this size of GPU


# --- layers ----------------------------------------------------------------------------------------


def dense(x: Any, w1: Any, b1: Any, w2: Any) -> Any:
    """A dense layer: linear, exact GELU, linear."""
    from torch.nn import functional

    return functional.linear(functional.gelu(functional.linear(x, w1, b1)), w2)


def torch_dense(dtype: str, compiled: bool) -> Rival:
    """linear, exact GELU, linear: each a kernel of its own, or as torch.compile fuses them."""

    def make(stream: Any, inputs: Sequence[Any], *arrays: np.ndarray) -> Callable[[int], Work]:
        import torch

        xs, weights = tensors(stream, dtype, inputs, arrays)
        layer = torch.compile(dense, dynamic=True) if compiled else dense

        def work(tokens: int) -> Work:
            return torch_work(stream, dtype, [functools.partial(layer, x[:tokens], *w) for x, w in zip(xs, weights, strict=True)])

        return work

    return Rival(dtype, make)


def batched_fff(x: Any, w_in: Any, b_in: Any, w_out: Any) -> Any:
    """One tree as the paper's PyTorch layer: the rows of each level are gathered for all tokens, then one batched product a level."""
    import torch

    node = torch.zeros(len(x), dtype=torch.long, device=x.device)
    nodes, logits = [], []
    for _ in range(len(w_in).bit_length()):
        z = torch.bmm(x[:, None], w_in[node][:, :, None])[:, 0, 0] + b_in[node]
        nodes.append(node)
        logits.append(z)
        node = 2 * node + 1 + (z > 0)
    by = torch.nn.functional.gelu(torch.stack(logits, 1))
    return torch.bmm(by[:, None], w_out[torch.stack(nodes, 1)])[:, 0]


def grouped_blocks(x: Any, order: Any, ends: Any, leaf: Any, rows_in: Any, b_rows: Any, rows_out: Any) -> Any:
    """The blocks of the tokens in `order`, sorted by leaf: two grouped products with a GELU between. ends: where each leaf's tokens end."""
    import torch

    grouped_mm = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    h = torch.nn.functional.gelu(grouped_mm(x[order], rows_in.transpose(1, 2), offs=ends) + b_rows[leaf[order]])
    return grouped_mm(h, rows_out, offs=ends)


def grouped_fff(x: Any, nodes_in: Any, b_nodes: Any, nodes_out: Any, rows_in: Any, b_rows: Any, rows_out: Any) -> Any:
    """One tree with blocks at its leaves: the nodes as a dense layer whose neurons off the path are zero, then the blocks."""
    import torch

    logits = torch.nn.functional.linear(x, nodes_in, b_nodes)
    node, path, leaves = torch.zeros(len(x), 1, dtype=torch.long, device=x.device), [], len(rows_in)
    for _ in range(leaves.bit_length() - 1):
        path.append(node)
        node = 2 * node + 1 + (logits.gather(1, node) > 0)
    on_path = torch.zeros_like(logits).scatter_(1, torch.cat(path, 1), 1.0)
    y = (torch.nn.functional.gelu(logits) * on_path) @ nodes_out
    leaf = node[:, 0] - (leaves - 1)
    order = torch.argsort(leaf)
    ends = (leaf[:, None] == torch.arange(leaves, device=x.device)).sum(0).cumsum(0).int()
    blocks = grouped_blocks(x, order, ends, leaf, rows_in, b_rows, rows_out)
    return y + torch.empty_like(y).index_copy_(0, order, blocks)


def torch_grouped(dtype: str) -> Rival:
    """A tree with blocks at its leaves by PyTorch's grouped products. It runs as it is, each operation a kernel of its own."""

    def make(stream: Any, inputs: Sequence[Any], depth: int, leaf: int, *arrays: np.ndarray) -> Callable[[int], Work]:
        w_in, b_in, w_out = (a[0] for a in arrays)
        nodes, leaves, hidden = (1 << depth) - 1, 1 << depth, w_in.shape[1]
        parts = [w_in[:nodes], b_in[:nodes], w_out[:nodes]]
        parts += [
            w_in[nodes:].reshape(leaves, leaf, hidden),
            b_in[nodes:].reshape(leaves, leaf),
            w_out[nodes:].reshape(leaves, leaf, hidden),
        ]
        xs, weights = tensors(stream, dtype, inputs, [np.ascontiguousarray(part) for part in parts])

        def work(tokens: int) -> Work:
            return torch_work(stream, dtype, [functools.partial(grouped_fff, x[:tokens], *w) for x, w in zip(xs, weights, strict=True)])

        return work

    return Rival(dtype, make)


def torch_layer(layer: Callable[..., Any]) -> Make:
    """A layer of float32 tensors; arrays of a single tree lose their first axis."""

    def make(stream: Any, inputs: Sequence[Any], *arrays: np.ndarray) -> Callable[[int], Work]:
        xs, weights = tensors(stream, "float32", inputs, [a[0] if len(a) == 1 else a for a in arrays])

        def work(tokens: int) -> Work:
            return torch_work(stream, "float32", [functools.partial(layer, x[:tokens], *w) for x, w in zip(xs, weights, strict=True)])

        return work

    return make


# One thread a token, rows read as they come: what the paper's CUDA kernels do, without their faults.
NAIVE = r"""
__device__ float gelu(float z) { return 0.5f * z * erfcf(-0.70710678f * z); }
__device__ float visit(const float* x, const float* w_in, float b, const float* w_out, float* y, int hidden) {
    float z = b;
    for (int i = 0; i < hidden; i++) z += x[i] * w_in[i];
    float by = gelu(z);
    for (int i = 0; i < hidden; i++) y[i] += by * w_out[i];
    return z;
}
extern "C" __global__ void naive(const float* x, const float* w_in, const float* b, const float* w_out, float* y, int tokens, int hidden,
                                 int steps, int tree) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= tokens) return;
    x += (long long)t * hidden, y += (long long)t * hidden;
    for (int i = 0; i < hidden; i++) y[i] = 0.f;
    for (int step = 0, node = 0; step < steps; step++) {
        float z = visit(x, w_in + (long long)node * hidden, b[node], w_out + (long long)node * hidden, y, hidden);
        node = tree ? 2 * node + 1 + (z > 0.f) : node + 1;
    }
}
"""


def naive(tree: bool) -> Make:
    """One thread a token, of a tree or of a dense layer; dense weights are (W, D), (W,), (D, W)."""

    def make(stream: Any, inputs: Sequence[Any], w_in: np.ndarray, b_in: np.ndarray, w_out: np.ndarray) -> Callable[[int], Work]:
        import cupy

        kernel = cupy.RawKernel(NAIVE, "naive")
        hidden = inputs[0].shape[1]
        w_in, b_in, w_out = (cupy.asarray(a) for a in (w_in, b_in, w_out if tree else np.ascontiguousarray(w_out.T)))
        steps = w_in.shape[1].bit_length() if tree else len(w_in)
        y = cupy.empty_like(inputs[0])

        def work(tokens: int) -> Work:
            def call(x: Any) -> None:
                sizes = (np.int32(n) for n in (tokens, hidden, steps, tree))
                kernel((-(-tokens // 128),), (128,), (x, w_in, b_in, w_out, y, *sizes))

            def capture(launch: Call) -> Call:
                stream.begin_capture()
                launch()
                return functools.partial(stream.end_capture().launch, stream)

            return Work(stream, [functools.partial(call, x) for x in inputs], capture, lambda: cupy.asnumpy(y[:tokens]))

        return work

    return make


# --- whole models ----------------------------------------------------------------------------------


class Bert(NamedTuple):
    """Weights of BERT as PyTorch has them: three embedding tables, (weight, bias) of their norm, (attention, feedforward) per layer."""

    tables: list[Any]
    norm: list[Any]
    layers: list[tuple[list[Any], list[Any]]]

    @classmethod
    def read(cls, folder: Path, layers: int, dtype: str, device: str = "cuda") -> Bert:
        """The weights of a folder in the Hugging Face layout, on a device."""
        import torch
        from safetensors.torch import load_file

        stored = {
            name.removeprefix("bert."): w.to(device).to(torch_dtype(dtype)) for name, w in load_file(folder / "model.safetensors").items()
        }

        def both(name: str) -> list[Any]:
            return [stored[f"{name}.weight"], stored[f"{name}.bias"]]

        def layer(at: str) -> tuple[list[Any], list[Any]]:
            parts = ("query", "key", "value")
            qkv = [torch.cat([stored[f"{at}.attention.self.{n}.{kind}"] for n in parts]) for kind in ("weight", "bias")]
            attention = [*qkv, *both(f"{at}.attention.output.dense"), *both(f"{at}.attention.output.LayerNorm")]
            return attention, [*both(f"{at}.intermediate.dense"), *both(f"{at}.output.dense"), *both(f"{at}.output.LayerNorm")]

        tables = [stored[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
        return cls(tables, both("embeddings.LayerNorm"), [layer(f"encoder.layer.{i}") for i in range(layers)])


def bert_functions(hidden: int, heads: int, eps: float) -> dict[str, Callable[..., Any]]:
    """{"embed", "layer", "split"}: BERT's functions of tensors. q, k and v come from one product, which split parts; exact GELU."""
    from torch.nn import functional

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        return functional.layer_norm(x, (hidden,), weight, bias, eps)

    def embed(ids: Any, word: Any, position: Any, token_type: Any, weight: Any, bias: Any) -> Any:
        return norm(functional.embedding(ids, word) + position[: ids.shape[1]] + token_type[0], weight, bias)

    def split(qkv: Any) -> Any:
        return qkv.view(*qkv.shape[:2], 3, heads, hidden // heads).permute(2, 0, 3, 1, 4).unbind(0)

    def attend(x: Any, qkv: Any, qkv_bias: Any, out: Any, out_bias: Any, weight: Any, bias: Any) -> Any:
        y = functional.scaled_dot_product_attention(*split(functional.linear(x, qkv, qkv_bias)))
        return norm(x + functional.linear(y.transpose(1, 2).reshape(x.shape), out, out_bias), weight, bias)

    def feed(x: Any, first: Any, first_bias: Any, second: Any, second_bias: Any, weight: Any, bias: Any) -> Any:
        middle = functional.gelu(functional.linear(x, first, first_bias))
        return norm(x + functional.linear(middle, second, second_bias), weight, bias)

    def layer(x: Any, attention: Any, ffn: Any) -> Any:
        return feed(attend(x, *attention), *ffn)

    return {"embed": embed, "layer": layer, "split": split}


class TorchBert:
    """BERT in PyTorch with SDPA, an Encode whose `encoder` gives graphs; compiled: each layer as one function."""

    def __init__(self, weights: Bert, functions: dict[str, Callable[..., Any]], hidden: int, dtype: str, compiled: bool) -> None:
        self._weights, self._hidden, self._dtype, self._compiled = weights, hidden, dtype, compiled
        self._split = functions["split"]
        self._eager = {name: functions[name] for name in ("embed", "layer")}

    def forward(self, functions: dict[str, Callable[..., Any]], ids: Any) -> Any:
        """Hidden states (B, S, D) of ids (B, S)."""
        x = functions["embed"](ids, *self._weights.tables, *self._weights.norm)
        for weights in self._weights.layers:
            x = functions["layer"](x, *weights)
        return x

    def __call__(self, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        import cupy
        import torch

        if mask is not None:
            raise ValueError("padded batches are not for this engine")
        with settings(cupy.cuda.get_current_stream(), self._dtype):
            return self.forward(self._eager, torch.from_numpy(ids).cuda()).float().cpu().numpy()

    def encoder(self, batches: Sequence[np.ndarray]) -> Encoder:
        """The graphs of this model for batches (texts, tokens) of one size. Raises RuntimeError where they differ from eager PyTorch."""
        import cupy
        import torch

        functions = self._eager
        if self._compiled:
            torch._dynamo.reset()  # it would stop compiling after the eighth shape
            functions = {name: torch.compile(function, dynamic=False) for name, function in self._eager.items()}
        stream = cupy.cuda.Stream(non_blocking=True)
        hosts = [torch.from_numpy(ids).pin_memory() for ids in batches]
        ids = hosts[0].cuda()
        torch.cuda.synchronize()
        work = torch_work(stream, self._dtype, [functools.partial(self.forward, functions, ids)])
        work.calls[0]()
        graph = work.capture(work.calls[0])
        graph()
        with settings(stream, self._dtype):  # __call__, which the reference was compared with, is eager
            error = float(np.abs(work.result() - self.forward(self._eager, ids).float().cpu().numpy()).mean())
        if not error < TOLERANCE[self._dtype]:
            raise RuntimeError(f"the graph differs from eager PyTorch by {error:g}")

        def call(which: int) -> None:
            with settings(stream, self._dtype):
                ids.copy_(hosts[which], non_blocking=True)
                if self._compiled:
                    graph()
                else:
                    self.forward(functions, ids)
            stream.synchronize()

        return Encoder(Replay(stream, graph, 1, keep=work), call, {"attention": self._attention(stream, functions, ids)})

    def _attention(self, stream: Any, functions: dict[str, Callable[..., Any]], ids: Any) -> Replay:
        """The replay of SDPA on random projections for ids."""
        import torch

        with settings(stream, self._dtype):
            x = self.forward(functions, ids)
            qkv = [torch.randn(*ids.shape, 3 * self._hidden, device="cuda").to(x.dtype) for _ in range(SETS)]
        torch.cuda.synchronize()
        calls = [functools.partial(torch.nn.functional.scaled_dot_product_attention, *self._split(q)) for q in qkv]
        return replay(torch_work(stream, self._dtype, calls))


def load_torch(path: str, dtype: str, compiled: bool) -> Encode:
    """BERT of a folder in the Hugging Face layout."""
    config = json.loads((Path(path) / "config.json").read_text())
    hidden = config["hidden_size"]
    functions = bert_functions(hidden, config["num_attention_heads"], config["layer_norm_eps"])
    return TorchBert(Bert.read(Path(path), config["num_hidden_layers"], dtype), functions, hidden, dtype, compiled)


def load_sentence_transformers(path: str, limit: int) -> Encode:
    """sentence-transformers with a folder, in float16: its own `encode` is at `whole`."""
    import torch
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(path, device="cuda").half()
    whole.max_seq_length = limit

    def encode(ids, mask=None):  # type: ignore[no-untyped-def]
        with torch.inference_mode():
            given = torch.from_numpy(ids).cuda()
            mask = torch.ones_like(given) if mask is None else torch.from_numpy(mask).cuda()
            return whole[0]({"input_ids": given, "attention_mask": mask})["token_embeddings"].float().cpu().numpy()

    encode.whole = whole  # type: ignore[attr-defined]
    return encode


def embed_sentences(batch: int, encode: Encode, tokenizer: object) -> EmbedTexts:
    """sentence-transformers' own encode: it sorts the texts by length, and pads batches."""
    return lambda texts: encode.whole.encode(texts, batch_size=batch, normalize_embeddings=False)  # type: ignore[attr-defined]


def models(
    missing: dict[str, str], folder: Path, cache: Path, threads: int | None, wanted: Callable[[str], bool], left_out: dict[str, str]
) -> Iterator[Engine]:
    """The rivals that can run the dense model in `folder` (Hugging Face layout) on this GPU; missing: what cannot be imported."""
    left_out |= missing
    if json.loads((folder / "config.json").read_text()).get("model_type") is None:
        left_out["all rivals"] = f"{folder} is in fastinfer's own layout; they read the Hugging Face one"
        return
    warnings.filterwarnings("ignore")
    for dtype in DTYPES if "torch" not in missing else ():
        for name, compiled in (("torch", False), ("torch compiled", True)):
            if wanted(f"{name} dense {dtype}"):
                yield Engine(name, "dense", dtype, load_torch, (str(folder), dtype, compiled), ("torch",))
    if (folder / "tokenizer.json").exists() and "sentence-transformers" not in missing:
        for batch in SENTENCE_BATCHES:
            name = f"sentence-tr., batch {batch}"
            if wanted(f"{name} dense float16"):
                arguments = (str(folder), checkpoint.load(folder, validate=False)[0].max_tokens)
                embed = functools.partial(embed_sentences, batch)
                yield Engine(name, "dense", "float16", load_sentence_transformers, arguments, ("sentence-transformers",), embed)


def installed() -> Rivals:
    """The rivals that can be imported here."""
    left_out: dict[str, str] = {}
    dense_layers: dict[str, Rival] = {}
    grouped: dict[str, Rival] = {}
    ladder: dict[str, Any] = {"dense naive": naive(tree=False), "fff naive": naive(tree=True)}
    try:
        import torch

        if not torch.cuda.is_available():
            raise ImportError(f"PyTorch {torch.__version__} is built without CUDA, or finds no GPU")
        for dtype in DTYPES:
            dense_layers[f"torch {dtype}"] = torch_dense(dtype, compiled=False)
            dense_layers[f"torch compiled {dtype}"] = torch_dense(dtype, compiled=True)
        if hasattr(torch.nn.functional, "grouped_mm") or hasattr(torch, "_grouped_mm"):
            grouped["torch"] = torch_grouped("bfloat16")  # in other dtypes it loops on the host, which no graph can hold
        ladder |= {"dense batched": torch_layer(dense), "fff batched": torch_layer(batched_fff)}
    except ImportError as error:
        left_out["torch"] = str(error)
    try:
        import sentence_transformers  # noqa: F401
    except ImportError as error:
        left_out["sentence-transformers"] = str(error)
    try:
        import onnxruntime

        why = "it is not measured here" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "it has no CUDA provider"
        left_out["onnxruntime"] = f"{onnxruntime.__version__}: {why}"
    except ImportError as error:
        left_out["onnxruntime"] = str(error)
    return Rivals(dense=dense_layers, grouped=grouped, ladder=ladder, models=functools.partial(models, left_out), left_out=left_out)
