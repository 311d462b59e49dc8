"""Encoders that transformers has no class for, written in PyTorch from their published formulas: ALiBi with a gated feedforward.

JinaBERT (Günther et al., arXiv 2310.19923) and MosaicBERT (Portes et al., arXiv 2312.17482) are BERT without position embeddings. Each head
subtracts a slope times the distance of two tokens from their score (Press et al., arXiv 2108.12409), and the feedforward multiplies two
halves, one of which goes through an activation. The names of the tensors are those of the published files.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput


class AlibiConfig(transformers.BertConfig):
    """BertConfig of a model with ALiBi. kind: jina, jina-code (queries and keys are normalised) or mosaic."""

    model_type = "zoo_alibi"
    kind: str = "jina"


def slopes(heads: int) -> torch.Tensor:
    """The slope of each head: a geometric series, filled up with every other one of the next longer series."""
    power = 2 ** math.floor(math.log2(heads))
    series = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    longer = [2 ** (-8 * (i + 1) / (2 * power)) for i in range(2 * power)]
    return torch.tensor(series + longer[0::2][: heads - power])


class Layer(nn.Module):
    """Attention with ALiBi, and the gated feedforward, each followed by a sum with its input and a norm."""

    def __init__(self, c: AlibiConfig) -> None:
        super().__init__()
        width, inner, self.kind, self.heads = c.hidden_size, c.intermediate_size, c.kind, c.num_attention_heads
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(), "output": nn.ModuleDict()})
        made, out = self.attention["self"], self.attention["output"]
        if c.kind == "mosaic":
            made["Wqkv"] = nn.Linear(width, 3 * width)
        else:
            made.update({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        if c.kind == "jina-code":
            made.update({f"layer_norm_{name}": nn.LayerNorm(width, c.layer_norm_eps) for name in "qk"})
            self.layer_norm_1, self.layer_norm_2 = nn.LayerNorm(width, c.layer_norm_eps), nn.LayerNorm(width, c.layer_norm_eps)
        out.update({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, c.layer_norm_eps)})
        gated, down = ("up_gated_layer", "down_layer") if c.kind == "jina-code" else ("gated_layers", "wo")
        self.mlp = nn.ModuleDict({gated: nn.Linear(width, 2 * inner, bias=False), down: nn.Linear(inner, width)})
        if c.kind != "jina-code":
            self.mlp["layernorm"] = nn.LayerNorm(width, c.layer_norm_eps)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x: (B, T, D); bias: what is added to the scores, (B, H, T, T)."""
        made, out = self.attention["self"], self.attention["output"]
        q, k, v = made["Wqkv"](x).chunk(3, -1) if self.kind == "mosaic" else (made[name](x) for name in ("query", "key", "value"))
        if self.kind == "jina-code":
            q, k = made["layer_norm_q"](q), made["layer_norm_k"](k)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        y = out["LayerNorm"](out["dense"]((scores @ v).transpose(1, 2).flatten(-2)) + x)
        if self.kind == "jina-code":  # its attention ends with the norm above, and the layer adds its input once more
            y = self.layer_norm_1(y + x)
            up, gate = self.mlp["up_gated_layer"](y).chunk(2, -1)
            return self.layer_norm_2(self.mlp["down_layer"](up * nn.functional.gelu(gate)) + y)
        gate, up = self.mlp["gated_layers"](y).chunk(2, -1)
        return self.mlp["layernorm"](self.mlp["wo"](nn.functional.gelu(gate) * up) + y)


class AlibiModel(transformers.PreTrainedModel):
    """The encoder: token and token type embeddings, a norm, the layers."""

    config_class = AlibiConfig
    all_tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__(config)
        words, types = nn.Embedding(config.vocab_size, config.hidden_size), nn.Embedding(config.type_vocab_size, config.hidden_size)
        norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.embeddings = nn.ModuleDict({"word_embeddings": words, "token_type_embeddings": types, "LayerNorm": norm})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)})

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, token_type_ids: Any = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """The final hidden states, and the pooled first one."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        places = torch.arange(input_ids.shape[1])
        bias = -slopes(self.config.num_attention_heads)[:, None, None] * (places[:, None] - places).abs()
        bias = bias[None] + torch.where(mask[:, None, None] > 0, 0.0, -1e9)
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](input_ids) + self.embeddings["token_type_embeddings"](types))
        for layer in self.encoder["layer"]:
            x = layer(x, bias)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.pooler["dense"](x[:, 0]).tanh())


class AlibiClassifier(transformers.PreTrainedModel):
    """The encoder with a linear map from the pooled first state to the labels."""

    config_class = AlibiConfig
    all_tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, config: AlibiConfig) -> None:
        super().__init__(config)
        self.bert, self.classifier = AlibiModel(config), nn.Linear(config.hidden_size, config.num_labels)

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, token_type_ids: Any = None, **_: Any
    ) -> SequenceClassifierOutput:
        """The logits of the labels."""
        return SequenceClassifierOutput(logits=self.classifier(self.bert(input_ids, attention_mask, token_type_ids).pooler_output))


transformers.AutoConfig.register("zoo_alibi", AlibiConfig)
transformers.AutoModel.register(AlibiConfig, AlibiModel)
transformers.AutoModelForSequenceClassification.register(AlibiConfig, AlibiClassifier)
