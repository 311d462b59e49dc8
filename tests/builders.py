"""Random small checkpoints with every option of a Config."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from fastinfer import checkpoint
from fastinfer.checkpoint import Tensor
from fastinfer.config import (
    FFF,
    Alibi,
    Answer,
    Attention,
    Buckets,
    Classify,
    Config,
    Dense,
    Disentangled,
    Embed,
    FillMask,
    Gated,
    HeadLayer,
    Ids,
    Norm,
    Positions,
    Project,
    Prompt,
    Stored,
    Tag,
    Tasks,
    Unit,
    tree_nodes,
)
from fastinfer.retrieval import EmbedSparse

booleans = st.booleans()
poolings = st.sampled_from(["mean", "cls", "max", "lse", "lasttoken", "weightedmean", "sqrtmean"])
stored_dtypes = st.sampled_from(["float32", "float16", "bfloat16", "int8"])


@st.composite
def pruned(draw) -> FFF:
    depth = draw(st.integers(0, 4))
    if depth and draw(booleans):
        nodes, leaves = draw(st.none() | st.integers(1, 2**depth - 1)), draw(st.none() | st.integers(1, 2**depth))
        form = {"leaf": draw(st.integers(2, 4)), "silent": draw(booleans), "bias_leaf": draw(booleans)}
        return FFF(draw(st.integers(1, 3)), depth, children=True, nodes=nodes, leaves=leaves, **form)
    return FFF(draw(st.integers(1, 3)), depth, children=True, nodes=draw(st.none() | st.integers(1, tree_nodes(depth))))


activations = st.sampled_from(["tanh", "relu", "gelu", "silu", "gelu_tanh"])
chosen = st.none() | activations
feedforwards = st.one_of(
    st.builds(Dense, st.integers(1, 20), booleans, booleans, activation=chosen),
    st.builds(Gated, st.integers(1, 20), booleans, booleans, activation=chosen),
    st.builds(FFF, st.integers(1, 3), st.integers(0, 4), st.integers(0, 5), booleans, booleans, activation=chosen),
    st.builds(
        *(FFF, st.integers(1, 3), st.integers(0, 3), st.integers(0, 5), booleans, booleans),
        leaf=st.integers(1, 4),
        silent=booleans,
        bias_leaf=booleans,
        activation=chosen,
    ),
    pruned(),
)
head_layers = st.lists(st.builds(HeadLayer, st.integers(1, 9), activations, booleans), max_size=2).map(tuple)


@st.composite
def embeds(draw) -> Embed:
    steps = st.builds(Project, st.integers(1, 9), booleans, st.none() | activations) | st.just(Unit())
    return Embed(
        draw(poolings | st.lists(poolings, min_size=2, max_size=3).map(tuple)),
        draw(booleans),
        draw(st.lists(steps, max_size=3).map(tuple)),
        draw(st.sampled_from([None, 1])),
        draw(st.sampled_from(["cosine", "dot", "euclidean", "manhattan"])),
        draw(st.sampled_from([(), (Prompt("query", "ç: "),), (Prompt("a", ""), Prompt("b", "b "))])),
        draw(st.sampled_from([None, "query", "document"])),
        draw(booleans),
    )


tasks = st.builds(
    Tasks,
    st.none() | embeds(),
    st.none() | st.builds(FillMask, booleans, booleans, booleans, activations),
    st.none()
    | st.builds(
        Classify,
        st.sampled_from([("one",), ("no", "yes"), ("a", "b", "ç\n", '"')]),
        st.sampled_from(["softmax", "sigmoid", "identity"]),
        poolings,
        head_layers,
    ),
    st.none() | st.builds(Tag, st.just(("O", "B-x", "I-x"))) | st.builds(Tag, st.just(("O", "x")), st.just("io"), head_layers),
    st.none() | st.builds(Answer, head_layers),
).flatmap(
    lambda made: st.sampled_from(
        [made] if made.fill_mask is None else [made, dataclasses.replace(made, embed_sparse=EmbedSparse("sum", "log1p_relu", most=3))]
    )
)


@st.composite
def configs(draw, head_size: int | None = None) -> Config:
    heads, size, layers = draw(st.integers(1, 4)), head_size or draw(st.integers(1, 9)), draw(st.integers(1, 3))
    positions = draw(st.integers(1, 12))
    each = st.lists(feedforwards, min_size=layers, max_size=layers).map(tuple)
    theta = st.none() | st.sampled_from([1e4, 16e4]) if size % 2 == 0 else st.none()
    attention = st.builds(Attention, theta, st.sampled_from([1.0, 0.25]), st.none() | st.integers(1, 5), booleans)
    norms, apart, made = st.sampled_from(["layer", "rms"]), draw(booleans), draw(tasks)
    wide = made.fill_mask is not None and not made.fill_mask.transform  # a decoder without a transform needs embeddings of D columns
    return Config(
        hidden=draw(st.integers(1, 36)) if apart else heads * size,
        head_size=size if apart else None,
        head_norms=draw(booleans),
        layers=layers,
        heads=heads,
        vocabulary=draw(st.integers(4, 30)),
        norm=Norm(draw(st.sampled_from(["pre", "post"])), draw(st.sampled_from([1e-12, 1e-5])), draw(booleans), draw(norms)),
        positions=Positions(draw(st.sampled_from(["learned", "scaled-sinusoidal", "none"])), positions),
        ffn=draw(each | feedforwards.map(lambda f: (f,) * layers)),
        max_tokens=draw(st.integers(1, positions)),
        tasks=made,
        embedding_norm=draw(booleans),
        final_norm=draw(booleans),
        token_types=draw(st.integers(0, 2)),
        ids=draw(st.sampled_from([Ids(), Ids(pad=0, mask=1, cls=2, sep=3), Ids(mask=3)])),
        attention_bias=draw(booleans),
        activation=draw(st.sampled_from(["gelu", "relu", "silu", "gelu_tanh"])),
        attention=draw(st.lists(attention, min_size=layers, max_size=layers).map(tuple)),
        distances=draw(st.sampled_from([None, Alibi(), Buckets(4, 9), Disentangled(2, 5)])),
        embedding_width=None if wide else draw(st.none() | st.integers(1, 9)),
        stored=draw(st.builds(Stored, stored_dtypes, stored_dtypes, stored_dtypes)),
    )


def tiny(**changes) -> Config:
    """A Config with hidden 16, one layer of 2 trees of depth 3, and every head."""
    options = {
        "hidden": 16,
        "layers": 1,
        "heads": 2,
        "vocabulary": 24,
        "norm": Norm("pre", 1e-12),
        "positions": Positions("learned", 8),
        "ffn": (FFF(2, 3),),
        "max_tokens": 8,
        "tasks": Tasks(Embed("mean", True), FillMask(True), Classify(("no", "yes"), "softmax"), Tag(("O", "B-x", "I-x")), Answer()),
        "ids": Ids(0, 1, 2, 3),
    }
    return Config(**options | changes)


def weights(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors for `config`, in its order and its dtypes."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, (shape, dtype, family) in checkpoint.tensors(config).items():
        if family == "table":
            ffn = config.ffn[int(name.split(".")[1])]
            made[name] = Tensor(np.stack([children(rng, ffn.node_count, ffn.depth, ffn.blocks) for _ in range(ffn.trees)]), "int32")
        elif not name.endswith(".scale"):
            values = rng.normal(size=shape, scale=shape[-1] ** -0.5).astype(np.float32)
            if name.endswith(("norm.weight", "position_scale")):
                values += 1
            made[name] = Tensor(values, "float32").to(dtype)
    return made


def children(rng: np.random.Generator, count: int, depth: int, blocks: int = 0) -> np.ndarray:
    """The table of children (count, 2) of a random pruned tree. A node or a block without a parent stays unreachable."""
    table = np.full((count, 2), -1, np.int32)
    level = np.zeros(count, int)
    for node in range(1, count + blocks):
        free = np.argwhere((table[:node] == -1) & (level[:node, None] < depth - (blocks > 0 and node < count)))
        if len(free):
            parent, side = free[rng.integers(len(free))]
            table[parent, side] = node
            if node < count:
                level[node] = level[parent] + 1
    return table


def save(folder, config: Config, seed: int = 0, **options) -> dict[str, Tensor]:
    """Write a checkpoint with random weights and return the weights."""
    made = weights(config, seed)
    checkpoint.save(folder, config, made, **options)
    return made


def rows(config: Config, seed: int = 0, texts: int = 4) -> list[list[int]]:
    """Random texts as lists of 1 to max_tokens ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocabulary, rng.integers(1, config.max_tokens + 1)).tolist() for _ in range(texts)]
