"""Two-way maps between an array of another codebase and one or several of ours. All are
permutations of elements, so that importing and exporting again gives the same bits."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Same:
    """The same elements in the same order; `lead` unit axes in front are ours only."""

    lead: int = 0

    def to_ours(self, x, shapes):
        if self.lead:
            return [x.reshape((1,) * self.lead + x.shape)]
        return [x.reshape(shapes[0]) if x.size == math.prod(shapes[0]) else x]

    def to_theirs(self, arrays):
        return arrays[0].reshape(arrays[0].shape[self.lead :])


@dataclasses.dataclass(frozen=True)
class Flat:
    """A vector of theirs [D] is split into heads [H, d] here."""

    def to_ours(self, x, shapes):
        return [x.reshape(shapes[0])]

    def to_theirs(self, arrays):
        return arrays[0].reshape(-1)


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A scalar of ours; theirs has `shape`, () or (1,), and either is read."""

    shape: tuple[int, ...] = ()

    def to_ours(self, x, shapes):
        return [x.reshape(())]

    def to_theirs(self, arrays):
        return arrays[0].reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """torch's Linear weight [out, in]; ours has `inputs` input axes, then the output axes
    (heads)."""

    inputs: int = 1

    def to_ours(self, x, shapes):
        return [x.T.reshape(shapes[0])]

    def to_theirs(self, arrays):
        w = arrays[0]
        return w.reshape(math.prod(w.shape[: self.inputs]), -1).T


@dataclasses.dataclass(frozen=True)
class Transposed:
    """Axes in reverse order: a matrix, or a convolution over time, [out, in, taps] of theirs."""

    def to_ours(self, x, shapes):
        return [x.T]

    def to_theirs(self, arrays):
        return arrays[0].T


@dataclasses.dataclass(frozen=True)
class Fused:
    """Queries, keys and values in one array of theirs, along its first axis."""

    inner: object

    def to_ours(self, x, shapes):
        parts = np.split(x, len(shapes))
        return [self.inner.to_ours(p, [s])[0] for p, s in zip(parts, shapes, strict=True)]

    def to_theirs(self, arrays):
        return np.concatenate([self.inner.to_theirs([a]) for a in arrays])


@dataclasses.dataclass(frozen=True)
class Conv:
    """A patch convolution [D, C, *patch] of theirs is a dense layer [prod(patch) * C, D] on patches
    here."""

    patch: tuple[int, ...]

    def to_ours(self, x, shapes):
        return [np.moveaxis(x, (0, 1), (-1, -2)).reshape(-1, len(x))]

    def to_theirs(self, arrays):
        w = arrays[0]
        w = w.reshape(*self.patch, -1, w.shape[-1])
        return np.moveaxis(w, (-1, -2), (0, 1))


@dataclasses.dataclass(frozen=True)
class QueueIds:
    """ALBEF's idx_queue [1, Q] int64, -100 where empty; ours [Q] int32, -1 where empty."""

    def to_ours(self, x, shapes):
        x = x.reshape(-1)
        return [np.where(x == -100, -1, x).astype(np.int32)]

    def to_theirs(self, arrays):
        x = arrays[0].astype(np.int64)
        return np.where(x == -1, -100, x)[None]


@dataclasses.dataclass(frozen=True)
class Pointer:
    """ALBEF's queue_ptr [1] int64; ours a scalar int32."""

    def to_ours(self, x, shapes):
        return [x.reshape(()).astype(np.int32)]

    def to_theirs(self, arrays):
        return arrays[0].astype(np.int64).reshape(1)
