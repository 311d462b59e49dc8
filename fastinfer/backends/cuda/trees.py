"""The ops of trees on a GPU: which kernels walk, in what order they run, and the blocks at the leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...checkpoint.tensor import Tensor
from ...weights import NODES, Form, Norm
from ..reference import Reference
from .device import Limits
from .fff import fff_argument, leaves_argument, to_leaves
from .kernels import Blocks, Kernels
from .plan import FEW_TOKENS, STRATEGIES, many_trees_costs, one_tree_strategy, parts, tiles_of_blocks
from .session import Sessions
from .shared import BLOCK_COLUMNS, VECTOR_BYTES, WARPS
from .weights import Leaves, Matrix, Packing, Trees, up


class TreeOps(Reference):
    """The part of FittedCUDA that computes trees."""

    cupy: Any
    act: str
    int8_rows: bool
    storage: Any
    limits: Limits
    packing: Packing
    sessions: Sessions
    kernels: Kernels
    _trees_few_threads = 0  # trees() sets it from the program

    def trees(self, nodes: Tensor, b_in: np.ndarray | None, children: np.ndarray | None, depth: int, form: Form = NODES) -> Trees | Leaves:
        trees = self.packing.trees(nodes, b_in, children, depth, form)
        walked = trees.nodes if isinstance(trees, Leaves) else trees
        # This compiles the kernels of the trees now, so that the first call does not.
        if walked is not None:
            self._trees_few_threads = self.kernels.constants(walked.walk, "trees_few_threads", 1)[0]
        if isinstance(trees, Leaves):
            self.kernels.load(Blocks())
        return trees

    def fff(
        self, x: Any, trees: Trees | Leaves, *, bias: Any = None, residual: Any = None, out: Any, nodes: Any = None, z: Any = None
    ) -> None:
        self.fff_between_norms(x, trees, bias=bias, residual=residual, out=out, nodes=nodes, z=z)

    def fff_between_norms(
        self,
        x: Any,
        trees: Trees | Leaves,
        *,
        bias: Any = None,
        residual: Any = None,
        out: Any,
        nodes: Any = None,
        z: Any = None,
        norm: Norm | None = None,
        add_input: bool = False,
        out_norm: Norm | None = None,
        eps: float = 0.0,
    ) -> None:
        """The reference's fff, fused with the norms and the residual around it in a layer. Here out may be x.

        Where leaves are blocks, out may be x only with `norm`.

        norm       the trees get h = LayerNorm(x) instead of x
        add_input  the sum includes h
        out_norm   out is the LayerNorm of the sum
        eps        eps of both norms
        """
        if not len(x):
            return
        if isinstance(trees, Trees):
            strategy = self.plan(len(x), trees)
            if strategy == "products" and nodes is not None and not trees.depth:  # only fff_mask records routes, and depth 0 has no mask
                strategy = "fff_trees"
            if strategy != "products":
                arguments = fff_argument(x, trees, bias, residual, out, nodes, z, norm, add_input, out_norm, eps)
                self._launch_walk(strategy, trees, arguments)
                return
        if norm is not None:
            h = self.sessions.current().take("normed", *x.shape)
            self.norm(x, norm, eps, out=h)
            x = h
        before = x if add_input else residual
        if isinstance(trees, Leaves):
            self._fff_by_blocks(x, trees, bias, before, out, nodes, z)
        else:
            self._fff_by_products(x, trees, bias, before, out, nodes, z)
        if add_input and residual is not None:
            out += residual
        if out_norm is not None:
            self.norm(out, out_norm, eps, out=out)

    def _launch_walk(self, strategy: str, trees: Trees, arguments: np.ndarray) -> None:
        """Launch a key of STRATEGIES with a struct FFF."""
        tokens, threads = STRATEGIES[strategy]
        self.kernels.launch(
            strategy, -(-int(arguments["tokens"]) // tokens), threads or self._trees_few_threads, arguments, variant=trees.walk
        )

    def _fff_by_products(self, x: Any, trees: Trees, bias: Any, residual: Any, out: Any, nodes: Any, z: Any, reached: Any = None) -> None:
        """fff by two products over all neurons; neurons off the paths become zero. For many trees this is cheaper than single rows.

        reached  (P, T) int32, the block that each token reaches, to be filled; None: there are no blocks
        """
        products, count = trees.products, len(trees.nodes)
        assert products is not None
        width = len(products.first.data)
        for part in self.parts(len(x), products.first):
            tokens = part.stop - part.start
            logits = self.sessions.current().take("logits", tokens, width)
            path, path_z = (None, None) if nodes is None else (nodes[part], z[part])
            ends = () if reached is None else (reached[:, part], len(x))
            if not trees.depth:
                self.linear(x[part], products.first, bias=products.bias, activation=trees.walk.activation, out=logits)
            else:
                self.linear(x[part], products.first, out=logits)
                arguments = logits, products.bias, width, path, path_z, *(ends or (None, 0))
                if trees.walk.silent:
                    self.kernels.launch("fff_reach", -(-tokens * count // 256), 256, *arguments, tokens, count, variant=trees.walk)
                    continue
                self.kernels.launch("fff_mask", tokens, 256, *arguments, variant=trees.walk)
            self.linear(logits, products.second, bias=bias, residual=None if residual is None else residual[part], out=out[part])

    def _fff_by_blocks(self, x: Any, trees: Leaves, bias: Any, residual: Any, out: Any, nodes: Any, z: Any) -> None:
        """fff of trees whose leaves are blocks: the walk of the nodes that decide, then the blocks that the tokens reach."""
        session, tokens = self.sessions.current(), len(x)
        reached: Any = None
        if trees.nodes is not None:
            inner = trees.nodes
            reached = session.take("reached", trees.trees, tokens, dtype=np.int32)
            path: Any = None
            path_z: Any = None
            if nodes is not None:
                path, path_z = (self.empty(tokens, trees.trees, inner.depth + 1, dtype=a.dtype) for a in (nodes, z))
            strategy = self.plan(tokens, inner)
            if strategy == "products" and inner.depth:
                self._fff_by_products(x, inner, bias, residual, out, path, path_z, reached)
            else:
                arguments = fff_argument(x, inner, bias, residual, out, path, path_z, None, False, None, 0.0)
                to_leaves(arguments, trees, reached)
                self._launch_walk("fff_trees" if strategy == "products" else strategy, inner, arguments)
            if nodes is not None:
                self._store_routes(trees, path, path_z, reached, nodes, z)
            if not inner.walk.silent:
                bias, residual = None, out
        elif nodes is not None:
            nodes.fill(0)
            z.fill(0)
        self._blocks(x, trees, reached, bias, residual, out)

    def _store_routes(self, trees: Leaves, path: Any, path_z: Any, reached: Any, nodes: Any, z: Any) -> None:
        """Fill nodes and z (T, P, depth + 1) with the paths of a walk (T, P, levels) and the blocks behind them."""
        assert trees.nodes is not None
        cupy, levels = self.cupy, path.shape[2]
        nodes.fill(-1)
        z.fill(0)
        nodes[:, :, :levels] = path
        z[:, :, :levels] = path_z
        block = reached.T[:, :, None]
        here = cupy.arange(nodes.shape[2]) == (path >= 0).sum(-1)[:, :, None]  # the level behind the last node
        nodes[...] = cupy.where(here & (block < trees.blocks), block + trees.nodes.nodes.shape[1], nodes)

    def _blocks(self, x: Any, trees: Leaves, reached: Any, bias: Any, residual: Any, out: Any) -> None:
        """out = what the blocks add for the tokens that reach them, + bias + residual, which may be out."""
        session, stride = self.sessions.current(), up(trees.leaf)
        tokens, width = x.shape
        launch, variant = self.kernels.launch, Blocks()
        if tokens <= FEW_TOKENS:
            few = session.take("neurons of few", tokens, trees.trees, stride, dtype=np.float32)
            arguments = leaves_argument(x, trees, reached, bias, residual, out, 0, {"few": few})
            launch("fff_few_in", (tokens * trees.trees, -(-trees.leaf // WARPS)), WARPS * 32, arguments, variant=variant)
            launch(
                "fff_few_out", (tokens, -(-width // (32 * VECTOR_BYTES // self.storage.itemsize))), WARPS * 32, arguments, variant=variant
            )
            return
        rows, most = tiles_of_blocks(tokens, trees.blocks)
        places = 4 * (trees.blocks + 1)
        fits = places <= self.limits.shared_memory - 1024  # the kernel has some shared memory of its own
        scratch = None if fits else session.take("places", trees.trees, trees.blocks + 1, dtype=np.int32)
        order = session.take("order", trees.trees, tokens, dtype=np.int32)
        tiles = session.take("tiles", trees.trees, most, 4, dtype=np.int32)
        sizes = tokens, trees.blocks, rows, most
        launch("fff_group", trees.trees, 1024, reached, order, tiles, scratch, *sizes, shared=places if fits else 16, variant=variant)
        buffers = {"order": order, "tiles": tiles, "neurons": session.take("neurons", tokens, stride)}
        if trees.trees > 1:
            buffers["sums"] = session.take("sums", tokens, width, dtype=np.float32)
        arguments = leaves_argument(x, trees, reached, bias, residual, out, most, buffers)
        for tree in range(trees.trees):
            for name, columns in (("in", stride), ("out", width)):
                launch(f"fff_block_{name}_{rows}", (most, -(-columns // BLOCK_COLUMNS)), 128, arguments, tree, variant=variant)

    def parts(self, tokens: int, first: Matrix) -> Iterator[slice]:
        """Slices of the tokens, so small that the outputs of `first` stay in L2 until they are read."""
        return parts(tokens, len(first.data) * self.storage.itemsize)

    def plan(self, tokens: int, trees: Trees) -> str:
        """The name of the fastest strategy for so many tokens: a key of STRATEGIES, or "products"."""
        count = len(trees.nodes)
        if count == 1 and trees.children is None:
            strategy = one_tree_strategy(tokens, self.act, self.limits.processors)
            return "products" if strategy == "fff_tree" and trees.products is not None else strategy
        slots = 0 if trees.products is None else len(trees.products.first.data)
        rows = "int8" if self.int8_rows else self.act
        costs = many_trees_costs(tokens, count * (trees.depth + 1), slots, rows, self.limits.processors)
        return min(costs, key=lambda strategy: costs[strategy])
