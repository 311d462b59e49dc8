"""The trainable norm of a model: a LayerNorm or an RMSNorm."""

from __future__ import annotations

from torch import Tensor, nn

from fastinfer.config import Config


class RMSNorm(nn.RMSNorm):
    """PyTorch's RMSNorm, computed in the dtype of its weight under autocast, too, as LayerNorm is."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., columns)."""
        return super().forward(x.to(self.weight.dtype))


def make_norm(config: Config, columns: int | None = None) -> nn.Module:
    """A fresh norm of the config's kind, over `columns` (None: D)."""
    kind = RMSNorm if config.norm.kind == "rms" else nn.LayerNorm
    return kind(config.hidden if columns is None else columns, config.norm.eps)
