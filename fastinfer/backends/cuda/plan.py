"""The choice of a kernel for a batch of a given size, from shapes and measured costs."""

from __future__ import annotations

from collections.abc import Iterator

from .shared import FEW_WARPS, PRODUCT_WARPS, PRODUCTS, WARPS

# {strategy of the FFF kernels: (tokens per block, threads per block)}; 0 threads: the program's trees_few_threads says how many
STRATEGIES = {
    "fff_tree": (WARPS, WARPS * 32),
    "fff_tree_few": (FEW_WARPS, FEW_WARPS * 32),
    "fff_trees": (WARPS, WARPS * 32),
    "fff_trees_few": (1, 0),
    "fff_subtrees": (1, 7 * 32),
}
FEW_TOKENS = 32  # tokens: up to so many read their blocks one by one; not measured
TILE_ROWS = (16, 64)  # tokens of a tile of fff_blocks.cu
MIDDLE_BYTES = 32 << 20  # bytes: hidden activations per chunk, so that the second product still finds them in L2


def bucket(tokens: int) -> int:
    """The number of tokens, at least `tokens`, for which a graph is captured. Steps are 8 tokens, or at most an eighth."""
    step = max(8, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def parts(tokens: int, token_bytes: int) -> Iterator[slice]:
    """Slices of the tokens. With `token_bytes` per token, the hidden activations of a slice stay in L2 until they are read."""
    step = max(1024, MIDDLE_BYTES // token_bytes // 1024 * 1024)
    for begin in range(0, tokens, step):
        yield slice(begin, min(begin + step, tokens))


def few_rows(rows: int, outputs: int, inputs: int, processors: int, shared: int) -> tuple[str, tuple[int, int], int] | None:
    """(name, blocks, bytes of shared memory) of the kernel of products.cu for a product of this shape, or None if no kernel fits.

    processors  multiprocessors of the GPU
    shared      bytes of shared memory that a block may ask for

    The kernel is the one with the smallest blocks whose blocks can all run at once.
    """
    steps = -(-inputs // (32 * PRODUCT_WARPS))
    for r, n in PRODUCTS:
        blocks, needed = (-(-outputs // (8 * n)), -(-rows // (16 * r))), 512 * PRODUCT_WARPS * (n * max(r, steps) + 12)
        if r == min(2, -(-rows // 16)) and blocks[0] * blocks[1] <= processors and needed <= shared:
            return f"product_{r}_{n}", blocks, needed
    return None


def tiles_of_blocks(tokens: int, blocks: int) -> tuple[int, int]:
    """(tokens of a tile, the most tiles of a tree) for tokens that are sorted by block; those of a path that stopped are one more block."""
    rows = TILE_ROWS[tokens >= 32 * blocks]
    return rows, min(tokens, tokens // rows + blocks + 1)


def one_tree_strategy(tokens: int, act: str, processors: int) -> str:
    """The strategy for one tree that is not pruned. act: the compute dtype; processors: multiprocessors."""
    few, some = (1, 8) if act == "float32" else (2, 12)  # tokens per multiprocessor: the times of strategies cross here on an H100
    if tokens <= few * processors:
        return "fff_subtrees"
    return "fff_tree_few" if tokens <= some * processors else "fff_tree"


def many_trees_costs(tokens: int, neurons: int, slots: int, rows: str, processors: int) -> dict[str, float]:
    """{strategy: microseconds} for a layer of many trees.

    neurons  nodes that a token visits
    slots    outputs of the first product; 0: the layer has no products
    rows     the dtype of the trees' rows

    The costs are fitted to times on an H100 at D = 768 with 1 to 65,536 tokens. fff_trees_few has a block per token: each wave of
    blocks costs a start and its rows, and a single token has L2 to itself. fff_trees has a warp per token: it takes the time of one
    token's rows until tokens outnumber warps. Products cost as much as dense layers.
    """
    row = {"float32": 0.138, "int8": 0.104}.get(rows, 0.048)
    lone_row, start, product = (1.08, 30, 0.27) if rows == "float32" else (0.47, 11, 0.024)
    waves = 0.65 if tokens == 1 else -(-tokens // (processors * (2 if rows == "float32" else 1)))
    costs = {
        "fff_trees_few": waves * (6 + row * neurons),
        "fff_trees": lone_row * neurons * max(1, tokens / (16 * processors)),
    }
    if slots:
        costs["products"] = start + product * tokens * slots / 4096
    return costs
