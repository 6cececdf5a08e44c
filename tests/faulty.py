"""A data source and an objective that misbehave at a chosen moment; for tests of whole runs."""

import time

import jax.numpy as jnp

from configs import emoji
from multimodal.data.builders.toy import ToySource


def get_config():
    """The default job in small, on the toy set, with a step that is not finite now and then."""
    c = emoji.get_config("smoke")
    c.data.source, c.data.kwargs = "toy", dict(modalities=("image", "text"), examples=32)
    c.data.eval_splits, c.eval.best, c.eval.names = (), "", ()
    c.objectives.poison = dict(fn="tests.faulty:poison", at=5)
    return c


def poison(net, out, batch, rng, at=-1):
    """NaN for a batch that holds the example `at`; 0, through the temperature, for others."""
    zero = 0.0 * net.scale()
    return jnp.where((batch["index"] == at).any(), jnp.nan, 1.0) * zero, {}


class Sleepy(ToySource):
    """The toy set, of which one example takes for ever to read."""

    def __init__(self, split, at=20):
        super().__init__(split, modalities=("image", "text"), examples=32)
        self._at = at if split == "train" else -1

    def __getitem__(self, index):
        if index == self._at:
            time.sleep(3600)
        return super().__getitem__(index)

    def texts(self, modality):
        """Words to train a tokenizer on, without that example."""
        return ["a red bar moving left slowly and a high tone"] * 9
