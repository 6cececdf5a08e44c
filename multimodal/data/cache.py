"""Decoded examples kept in memory."""

import sys
import threading

import numpy as np


class DecodedCache:
    """Examples by index until a limit of bytes is reached; what is in stays in.

    Nothing is evicted: under a shuffled epoch, evicting the oldest of a set larger than the cache
    would throw each entry away just before its next use.
    """

    def __init__(self, limit):
        self._limit, self._bytes = limit, 0
        self._items, self._lock = {}, threading.Lock()

    @property
    def full(self):
        """Whether further examples are turned away."""
        return self._bytes >= self._limit

    def get(self, index):
        """The example of an index, or None."""
        return self._items.get(index)

    def add(self, index, example):
        """Keep an example unless the limit has been reached."""
        size = sum(_size(v) for v in example.values())
        with self._lock:
            if index not in self._items and not self.full:
                self._items[index] = example
                self._bytes += size


def _size(value):
    return value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value)
