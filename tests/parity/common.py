"""What the checks share: batches of ours from arrays of theirs, the search for a number of
heads."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from multimodal.interop import import_weights
from multimodal.nn.encoders import build_encoder
from multimodal.nn.model import Net, build_model


@contextlib.contextmanager
def precision(dtype):
    """Run in this floating-point type."""
    with jax.enable_x64(np.dtype(dtype).name == "float64"):
        yield


def with_dtype(cfg: dict, dtype) -> dict:
    """A model config that computes in this type."""
    return cfg | {"model": cfg["model"] | {"dtype": np.dtype(dtype).name}}


def make_batch(image=None, ids=None, mask=None, example_ids=None) -> dict:
    """A batch of ours: images [B, C, H, W] become [B, H, W, C]."""
    size = len(ids if image is None else image)
    batch = {"id": np.arange(size, dtype=np.int32), "index": np.arange(size, dtype=np.int32)}
    if image is not None:
        batch["image"] = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    if ids is not None:
        batch["text"] = ids.astype(np.int32)
    if mask is not None:
        batch["text_mask"] = mask.astype(bool)
    if example_ids is not None:
        batch["id"] = example_ids.astype(np.int32)
    return {k: jnp.asarray(v) for k, v in batch.items()}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with imported weights."""

    model: object
    params: dict
    config: dict
    source: object

    @property
    def net(self):
        """The model's methods over its weights."""
        return Net(self.model, self.params)

    def gradients(self, grads: dict):
        """Gradients under their names as a tree of ours."""
        return import_weights(grads, self.source.format, self.config, act=acts(self.config)).params

    def encode(self, m, x, mask=None):
        """(tokens [B, L, D], pooled [B, D]) of one tower, before projection and normalisation."""
        encoder = build_encoder(self.config["modalities"][m], dtype=self.config["model"]["dtype"])
        params = {"params": self.params[f"encoder_{m}"]}
        tokens, pooled = encoder.apply(params, x, jnp.ones(len(x), bool), None, mask)
        return tokens.x, pooled


def acts(config) -> dict:
    """Activations by modality."""
    return {m: c["act"] for m, c in config["modalities"].items()}


def load(weights, dtype, **kwargs) -> Loaded:
    """Import weights into the model that they belong to."""
    imported = import_weights(weights, **kwargs)
    config = with_dtype(imported.config, dtype)
    return Loaded(build_model(config), jax.tree.map(jnp.asarray, imported.params), config, imported)


def divisors(n) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


def find_heads(widths: dict, error_of, tolerance, guess=None) -> dict:
    """The numbers of heads, which weights do not record, by modality: for each the divisor of its
    width that fits.

    Args:
      error_of: fn(modality, {modality: heads}) -> relative error of that tower's output.
      guess: numbers to try first.
    """
    heads = dict.fromkeys(widths, 1)
    for m, width in widths.items():
        errors = {}
        first = [guess[m]] if guess else []
        for d in first + divisors(width):
            errors[d] = error_of(m, heads | {m: d})
            if errors[d] <= tolerance:
                break
        heads[m] = min(errors, key=errors.get)
    return heads


def say_heads(heads: dict) -> str:
    """The note that tells of find_heads."""
    return (
        "heads "
        + ", ".join(f"{m} {n}" for m, n in heads.items())
        + " (found among divisors of the width)"
    )
