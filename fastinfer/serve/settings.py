"""Settings: what `fastinfer serve` was asked for. They can be JSON, so that workers get them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Limits", "Settings"]


@dataclass(frozen=True)
class Limits:
    """What one client may ask for. Each limit has an option of its name, which errors say.

    max_body     bytes of a request
    max_texts    texts of a request
    max_tokens   tokens of a request, together
    max_waiting  texts of all requests that wait or are computed, for each model
    max_seconds  from the first byte of a request to its answer
    """

    max_body: int = 8 << 20
    max_texts: int = 2048
    max_tokens: int = 300_000
    max_waiting: int = 8192
    max_seconds: int = 60


@dataclass(frozen=True)
class Settings:
    """models: (name, what fastinfer.load() opens; None: the model inside); key: what clients must send; None: nothing."""

    models: tuple[tuple[str, str | None], ...]
    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    max_depth: int | None = None
    batch_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)
    log_level: str = "info"
    key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Settings:
        """Settings from the JSON of dataclasses.asdict()."""
        return cls(**value | {"models": tuple(map(tuple, value["models"])), "limits": Limits(**value["limits"])})
