"""A fast feedforward in float64 loops, written from the definition. It uses nothing from fastinfer."""

import math

import numpy as np


def gelu(z: float) -> float:
    return 0.5 * z * math.erfc(-z / math.sqrt(2.0))


def walk(x, w_in, b_in, depth, children=None, count=None):
    """Node ids (T, P, depth + 1), -1 after a stop, and z, same shape, float64, 0 after a stop.

    count: the nodes; a number that is not less is that of a block, where a walk ends (z is 0). None: there are no blocks.
    """
    x, w_in = np.asarray(x, np.float64), np.asarray(w_in, np.float64)
    trees = len(w_in)
    nodes = np.full((len(x), trees, depth + 1), -1)
    z = np.zeros(nodes.shape)
    for t in range(len(x)):
        for p in range(trees):
            node = 0
            for level in range(depth + 1):
                nodes[t, p, level] = node
                if count is not None and node >= count:
                    break
                logit = float(np.dot(x[t], w_in[p, node])) + (0.0 if b_in is None else float(b_in[p, node]))
                z[t, p, level] = logit
                right = logit > 0
                node = 2 * node + (2 if right else 1) if children is None else int(children[p, node, 1 if right else 0])
                if node == -1:
                    break
    return nodes, z


def add_up(x, w_in, b_in, w_out, nodes, b_out=None, *, count=None, leaf=1, silent=False, activation=gelu, b_leaf=None):
    """The output (T, D), float64, along the given nodes. A block has `leaf` neurons, behind the `count` nodes and the blocks before."""
    x, w_in, w_out = (np.asarray(a, np.float64) for a in (x, w_in, w_out))
    y = np.zeros((len(x), w_out.shape[2]))

    def add(t, p, row):
        logit = float(np.dot(x[t], w_in[p, row])) + (0.0 if b_in is None else float(b_in[p, row]))
        y[t] += activation(logit) * w_out[p, row]

    for t in range(len(x)):
        for p in range(len(w_in)):
            for node in nodes[t, p]:
                if count is not None and node >= count:
                    for i in range(leaf):
                        add(t, p, count + (node - count) * leaf + i)
                    if b_leaf is not None:
                        y[t] += b_leaf[p, node - count]
                elif node >= 0 and not silent:
                    add(t, p, node)
    return y if b_out is None else y + np.asarray(b_out, np.float64)
