"""BERT in plain PyTorch, from the tensors of a Hugging Face file. This oracle shares no code with the package.

It takes one text at a time, in float32 and without padding. `w` is {name in the file: tensor}; `prefix` is "bert." or "".
"""

import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention


def read(path):
    """{name: float32 tensor} of a .safetensors or a .bin file, with the current names of a norm's parameters."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    return {n.replace(".gamma", ".weight").replace(".beta", ".bias"): t.float() for n, t in weights.items()}


def _linear(w, name, x):
    return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(w, name, x, eps=1e-12):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


@torch.no_grad()
def hidden_states(w, ids, *, heads, prefix="", types=None):
    """The embedding and the output of every layer, each (T, D), from ids (T,)."""
    tokens = torch.as_tensor(ids)
    types = torch.zeros_like(tokens) if types is None else torch.as_tensor(types)
    at = f"{prefix}embeddings"
    x = w[f"{at}.word_embeddings.weight"][tokens] + w[f"{at}.position_embeddings.weight"][: len(tokens)]
    x = _norm(w, f"{at}.LayerNorm", x + w[f"{at}.token_type_embeddings.weight"][types])
    states = [x]
    while f"{prefix}encoder.layer.{len(states) - 1}.output.dense.weight" in w:
        at = f"{prefix}encoder.layer.{len(states) - 1}"
        q, k, v = (_linear(w, f"{at}.attention.self.{n}", x).unflatten(1, (heads, -1)).transpose(0, 1) for n in ("query", "key", "value"))
        mixed = scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        x = _norm(w, f"{at}.attention.output.LayerNorm", x + _linear(w, f"{at}.attention.output.dense", mixed))
        middle = gelu(_linear(w, f"{at}.intermediate.dense", x))
        x = _norm(w, f"{at}.output.LayerNorm", x + _linear(w, f"{at}.output.dense", middle))
        states.append(x)
    return states


@torch.no_grad()
def mask_logits(w, x, prefix="bert."):
    """Logits (T, V) from final hidden states (T, D). The decoder is the word embedding."""
    x = _norm(w, "cls.predictions.transform.LayerNorm", gelu(_linear(w, "cls.predictions.transform.dense", x)))
    return linear(x, w[f"{prefix}embeddings.word_embeddings.weight"], w["cls.predictions.bias"])


@torch.no_grad()
def class_logits(w, x, prefix="bert."):
    """Logits (K,) of the first token, from final hidden states (T, D)."""
    return _linear(w, "classifier", torch.tanh(_linear(w, f"{prefix}pooler.dense", x[0])))
