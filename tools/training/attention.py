"""The trainable attention, and what positions do to it: rotary angles, distances, windows. backends/reference.py is the contract.

A mask is what scaled_dot_product_attention takes: None, bool (True where a query sees a key), or float (added to scores).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinfer import config as configs
from fastinfer.config import Alibi, Buckets, Config, Disentangled
from fastinfer.positions import bucket_of, distance_table, relative_rows, rotary_table
from training.norm import RMSNorm, make_norm


class Rotary(nn.Module):
    """Turns q and k by their positions, with the angles of positions.rotary_table. Layers with equal angles share one."""

    def __init__(self, config: Config, theta: float, scale: float) -> None:
        super().__init__()
        table = rotary_table(config.positions.max, config.width_of_head, theta, scale)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., L, S) -> (..., L, S), computed in the dtype of the table, since angles in bfloat16 would be wrong by degrees."""
        cos, sin = self.table[: x.shape[-2]].chunk(2, -1)
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class Distances(nn.Module):
    """What all layers add to the scores of a pair of tokens by its distance: a learned value per bucket, or the slopes of ALiBi."""

    def __init__(self, config: Config, distances: Buckets | Alibi) -> None:
        super().__init__()
        reach, learned = config.positions.max, isinstance(distances, Buckets)
        self.bias = nn.Parameter(torch.empty(config.heads, distances.buckets)) if learned else None
        if learned:
            table = bucket_of(torch.arange(1 - reach, reach).numpy(), distances.buckets, distances.reach)
        else:
            table = distance_table(distances, reach, config.heads, None)
        self.register_buffer("table", torch.from_numpy(table), persistent=False)  # the bucket of each distance, or (H, distances) values

    def forward(self, length: int) -> Tensor:
        """(H, L, L)."""
        return by_distance(self.table if self.bias is None else self.bias[:, self.table], length)


class Attention(nn.Module):
    """Multi-head self-attention inside each text, with its norm where the layer has one."""

    def __init__(self, config: Config, layer: int, rotary: Rotary | None) -> None:
        super().__init__()
        self.heads, self.rotary = config.heads, rotary
        normed = layer > 0 or config.norm.order == "post" or config.norm.first
        self.norm = make_norm(config) if normed else None
        size, inner = config.width_of_head, config.heads * config.width_of_head
        self.qkv = nn.Linear(config.hidden, 3 * inner, config.attention_bias)
        self.out = nn.Linear(inner, config.hidden, config.attention_bias)
        self.query_norm, self.key_norm = (RMSNorm(size, config.norm.eps) if config.head_norms else None for _ in range(2))
        relative = config.distances if isinstance(config.distances, Disentangled) else None
        self.relative_keys, self.relative_queries = (
            nn.Parameter(torch.empty(2 * relative.buckets, inner)) if relative else None for _ in range(2)
        )
        if relative:
            rows = torch.from_numpy(relative_rows(relative, config.positions.max)).long()
            self.register_buffer("rows", rows, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D); mask as the module says. The rows of padding hold arbitrary values."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        if self.relative_keys is not None:
            mask = merged(mask, self.related(q, k))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def related(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, L, L): (q_i . keys[r] + k_j . queries[r]) / sqrt(S), r the row of the distance i - j, for q and k (B, H, L, S)."""
        keys, queries = (t.unflatten(1, (self.heads, -1)).permute(1, 2, 0) for t in (self.relative_keys, self.relative_queries))
        rows = by_distance(self.rows, q.shape[2]).expand(*q.shape[:2], -1, -1)  # of the distance j - i
        by_query = (q @ keys).gather(3, rows.mT)
        by_key = (k @ queries).gather(3, rows)
        return (by_query + by_key.mT) * q.shape[3] ** -0.5


def by_distance(table: Tensor, length: int) -> Tensor:
    """A tensor (..., L, L) from a table (..., 2 R - 1) whose entry R - 1 + j - i belongs to row i and column j."""
    middle = table.shape[-1] // 2
    return table[..., middle - length + 1 : middle + length].unfold(-1, length, 1).flip(-2)


def visible(mask: Tensor | None, length: int, window: int | None, causal: bool, device: torch.device) -> Tensor | None:
    """The keys that each query sees, as a bool mask: those of its text, mask (B, L), at most `window` away, if `causal` none after it."""
    tokens = None if mask is None else mask[:, None, None]
    if window is None and not causal:
        return tokens
    place = torch.arange(length, device=device)
    away = place[:, None] - place
    near = away.abs() <= (length if window is None else window)
    if causal:
        near &= away >= 0
    # Padding that is far from every token sees itself: a row without keys would be NaN, which spreads to the tokens of the next layer.
    return near if tokens is None else (near & tokens) | (away == 0)


def merged(mask: Tensor | None, added: Tensor) -> Tensor:
    """A bool mask and values that are added to scores, as a float mask."""
    return added if mask is None else added.masked_fill(~mask, -torch.inf)


def masks(
    mask: Tensor | None, length: int, layers: tuple[configs.Attention, ...], distances: Distances | None, device: torch.device
) -> list[Tensor | None]:
    """The mask of each layer, for texts with the tokens `mask` (B, L); layers that see equal keys share one."""
    made = {sees: visible(mask, length, *sees, device) for sees in {(layer.window, layer.causal) for layer in layers}}
    if distances is not None:
        added = distances(length)
        made = {sees: merged(seen, added) for sees, seen in made.items()}
    return [made[layer.window, layer.causal] for layer in layers]
