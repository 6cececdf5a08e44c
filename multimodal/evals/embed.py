"""Embeddings, tokens and matching scores of many examples, each exactly once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from multimodal.errors import UserError
from multimodal.nn.batch import BATCH_AXES
from multimodal.nn.layers import Tokens
from multimodal.nn.model import Net
from multimodal.registry import nearest

TOKEN_BYTES = 2**30  # tokens of one modality kept on the host while pairs are scored


def embed(net, modality, rows, batch_size=64, mesh=None) -> np.ndarray:
    """Embeddings of all rows, in order.

    Args:
      rows: [N, ...] input of the modality's encoder: an array, or anything with a length that an
        array of indices can index (evals.data.Rows decodes images only then).
      batch_size: examples at a time; it does not change the result.
      mesh: devices to spread a batch over; every process gives all rows and gets all results.
    Returns: [N, E] unit length.
    Raises: UserError for an unknown modality, one that gives no embedding, or no rows.
    """
    check_modality(net.model, modality)
    rows = as_rows(rows)
    return map_rows(
        _embed, net, lambda i: {modality: rows[i]}, len(rows), batch_size, mesh, modality=modality
    )


def check_modality(model, modality):
    """Raise UserError unless the model has the modality."""
    if modality not in model.modalities:
        known = ", ".join(model.modalities)
        raise UserError(
            f"the model has no modality {modality!r}{nearest(modality, model.modalities)}; "
            f"it has {known}"
        )


def gives_embedding(net, modality, rows) -> bool:
    """Whether the modality's tower gives a point of the shared space (pool is not 'none')."""
    one = {modality: as_rows(rows)[np.zeros(1, int)]}
    return jax.eval_shape(lambda batch: net.encode(batch)[modality].embed, one) is not None


def as_rows(rows):
    """A list becomes an array; what has a shape or indexes by arrays stays."""
    return (
        np.stack([np.asarray(r) for r in rows]) if isinstance(rows, list | tuple) and rows else rows
    )


def _embed(net, batch, modality):
    encoded = net.encode(batch)[modality]
    if encoded.embed is None:
        raise UserError(f"{modality}: its encoder gives tokens only (pool = 'none'), no embedding")
    return encoded.embed


def _tokens(net, batch, modality):
    return net.encode(batch)[modality].tokens


def _match(net, batch):
    return net.match(net.fuse(batch["query"], batch["context"]))


def map_rows(fn, net, take, count, batch_size, mesh=None, **static):
    """fn(net, take(index), **static) for index 0 to count - 1, each row exactly once.

    The last batch is filled up with its last row, and what that gives is cut off: every call has
    one shape, so fn is compiled once.

    Args:
      fn: a module-level function that treats rows apart: row i of its result is row i's alone.
      take: int array [B] -> pytree of NumPy arrays [B, ...].
      static: further arguments, hashable.
    Returns: pytree of NumPy arrays [count, ...].
    """
    if count == 0:
        raise UserError("no examples: there is nothing to embed")
    size = _batch_shape(count, batch_size, mesh)
    run = _compiled(fn, _ById(net.model), mesh, tuple(sorted(static.items())))
    params = _place(net.params, mesh)
    parts, pending = [], None
    for start in range(0, count, size):
        index = np.minimum(np.arange(start, start + size), count - 1)
        result = run(params, _put(take(index), mesh)), min(size, count - start)
        # One batch behind, so that the host prepares the next while the device computes.
        parts += [_fetch(*pending)] if pending else []
        pending = result
    parts.append(_fetch(*pending))
    return jax.tree.map(lambda *v: np.concatenate(v), *parts)


def _fetch(result, rows):
    return jax.tree.map(lambda v: np.asarray(v)[:rows], result)


def _batch_shape(count, batch_size, mesh):
    """batch_size, or a power of two for few rows; a multiple of the mesh's shards."""
    size = min(int(batch_size), 2 ** math.ceil(math.log2(count)))
    shards = _shards(mesh)
    return math.ceil(size / shards) * shards


def _axes(mesh):
    return tuple(a for a in BATCH_AXES if a in mesh.axis_names) or mesh.axis_names


def _shards(mesh):
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in _axes(mesh))


def _put(tree, mesh):
    """NumPy arrays -> arrays sharded over the mesh's batch axes, on any number of processes."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(_axes(mesh)))
    return jax.tree.map(
        lambda v: jax.make_array_from_callback(v.shape, sharding, lambda i, v=v: v[i]), tree
    )


def _place(params, mesh):
    """Parameters where they lie if that is on the mesh, else a copy on each of its devices."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    devices = set(mesh.devices.flat)
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(x):
        there = isinstance(x, jax.Array) and x.sharding.device_set == devices
        return x if there else jax.device_put(x, replicated)

    return jax.tree.map(place, params)


class _ById:
    """Makes a model, which holds dicts, the key of a cache: the same object, the same key."""

    def __init__(self, model):
        self.model = model

    def __hash__(self):
        return id(self.model)

    def __eq__(self, other):
        return self.model is other.model


@functools.lru_cache(maxsize=64)
def _compiled(fn, key, mesh, static):
    def run(params, batch):
        return fn(Net(key.model, params), batch, **dict(static))

    if mesh is None:
        return jax.jit(run)
    jitted = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def on_mesh(params, batch):
        with jax.set_mesh(mesh):
            return jitted(params, batch)

    return on_mesh


class TokenStore:
    """Tokens of one modality's rows, for scoring pairs.

    N x L x D floats may be much. Where they fit max_bytes they are computed once and kept on the
    host; else the tokens of the rows asked for are computed again at each asking.
    """

    def __init__(self, net, modality, rows, batch_size=64, mesh=None, max_bytes=TOKEN_BYTES):
        check_modality(net.model, modality)
        self._rows = as_rows(rows)
        self._compute = functools.partial(self._tokens, net, modality, batch_size, mesh)
        one = jax.eval_shape(
            lambda batch: _tokens(net, batch, modality), {modality: self._rows[np.zeros(1, int)]}
        )
        self.row_bytes = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(one))
        self.held = len(self._rows) * self.row_bytes <= max_bytes
        self.rows_at_once = max(1, max_bytes // self.row_bytes)
        self._all = None

    def _tokens(self, net, modality, batch_size, mesh, index):
        return map_rows(
            _tokens,
            net,
            lambda i: {modality: self._rows[index[i]]},
            len(index),
            batch_size,
            mesh,
            modality=modality,
        )

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index) -> Tokens:
        """Tokens (NumPy) of the rows of an int array [K]."""
        if not self.held:
            return self._compute(index)
        if self._all is None:
            self._all = self._compute(np.arange(len(self._rows)))
        return jax.tree.map(lambda v: v[index], self._all)


def check_match(model):
    """Raise UserError unless the model can say whether a pair belongs together."""
    if not model.fusion or "match" not in model.heads:
        raise UserError(
            "the model has no matching head: it was trained without config.model.fusion or without "
            "'match' in config.model.heads; compare embeddings, or train with the objective itm"
        )


def match_pairs(net, query, context, query_index, context_index, batch_size=64, mesh=None):
    """Logits of the matching head for pairs of rows.

    Args:
      query, context: TokenStores of the fusion's query (text in ALBEF) and context (image).
      query_index, context_index: [P] int, the rows of pair p.
    Returns: [P, 2] logits; class 1 says that the pair belongs together.
    Raises: UserError where the model has no matching head.
    """
    check_match(net.model)
    step = len(query_index)
    for store in (query, context):
        step = step if store.held else min(step, max(batch_size, store.rows_at_once))
    parts = []
    for start in range(0, len(query_index), step):
        part = slice(start, start + step)
        q, q_row = np.unique(query_index[part], return_inverse=True)
        c, c_row = np.unique(context_index[part], return_inverse=True)
        tokens = {"query": (query[q], q_row), "context": (context[c], c_row)}
        parts.append(map_rows(_match, net, _taker(tokens), len(q_row), batch_size, mesh))
    return np.concatenate(parts)


def _taker(tokens):
    def take(i):
        return {k: jax.tree.map(lambda v, r=r: v[r[i]], t) for k, (t, r) in tokens.items()}

    return take
