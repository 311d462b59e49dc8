"""Which kernel takes a batch of a given size: arithmetic on shapes and on costs that were measured."""

from __future__ import annotations

from collections.abc import Iterator

from .shared import FEW_WARPS, PRODUCT_WARPS, PRODUCTS, WARPS

# Strategies of the feedforward's kernels: tokens and threads of a block (0: what the kernels say)
STRATEGIES = {
    "fff_tree": (WARPS, WARPS * 32),
    "fff_tree_few": (FEW_WARPS, FEW_WARPS * 32),
    "fff_trees": (WARPS, WARPS * 32),
    "fff_trees_few": (1, 0),
    "fff_subtrees": (1, 7 * 32),
}
MIDDLE_BYTES = 32 << 20  # of hidden activations per chunk, so that the second product still finds them in L2


def bucket(tokens: int) -> int:
    """The size of graph that serves `tokens`: steps of at most an eighth."""
    step = max(8, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def parts(tokens: int, token_bytes: int) -> Iterator[slice]:
    """Tokens cut so that hidden activations of so many bytes a token stay in L2 until they are read."""
    step = max(1024, MIDDLE_BYTES // token_bytes // 1024 * 1024)
    for begin in range(0, tokens, step):
        yield slice(begin, min(begin + step, tokens))


def few_rows(rows: int, outputs: int, inputs: int, processors: int, shared: int) -> tuple[str, tuple[int, int], int] | None:
    """(name, blocks, bytes of shared memory) of the kernel of products.cu for a product of this shape, by the smallest blocks of which all
    can run at once on so many processors with so much shared memory each; None where there are none.
    """
    steps = -(-inputs // (32 * PRODUCT_WARPS))
    for r, n in PRODUCTS:
        blocks, needed = (-(-outputs // (8 * n)), -(-rows // (16 * r))), 512 * PRODUCT_WARPS * (n * max(r, steps) + 12)
        if r == min(2, -(-rows // 16)) and blocks[0] * blocks[1] <= processors and needed <= shared:
            return f"product_{r}_{n}", blocks, needed
    return None


def one_tree_strategy(tokens: int, act: str, processors: int) -> str:
    """The strategy for a single tree that is not pruned."""
    few, some = (1, 8) if act == "float32" else (2, 12)  # tokens per multiprocessor, where times on an H100 cross
    if tokens <= few * processors:
        return "fff_subtrees"
    return "fff_tree_few" if tokens <= some * processors else "fff_tree"


def many_trees_costs(tokens: int, neurons: int, slots: int, rows: str, processors: int) -> dict[str, float]:
    """{strategy: microseconds} for a layer of many trees of which a token uses so many neurons, and has so many slots (0: no products).

    rows: the dtype of the trees' rows.

    Fitted to times on an H100 at D = 768, 1 to 65,536 tokens. By a block a token: waves of blocks, each a start and its rows; one
    token has L2 to itself. By a warp a token: as long as the rows of one, until there are more tokens than warps. By products: what
    dense layers cost.
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
