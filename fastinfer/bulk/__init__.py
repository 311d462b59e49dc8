"""Many texts, on one machine or on many: Embed is a function for Ray Data, Dask and Spark, and `fastinfer bulk` a command on top of it."""

from .embed import Embed

__all__ = ["Embed"]
