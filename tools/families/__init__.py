"""The families of tools/zoo.py: published layouts built small with random weights, and the oracles that they are compared with."""

from __future__ import annotations

from . import embedders, heads, newer, refused, rotary

__all__ = ["FAMILIES"]

FAMILIES = [*embedders.FAMILIES, *heads.FAMILIES, *newer.FAMILIES, *rotary.FAMILIES, *refused.FAMILIES]
