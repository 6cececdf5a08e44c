"""A model with known answers: what is in the input is its evidence for the classes."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from multimodal.evals.data import EvalData
from multimodal.nn.layers import Tokens
from multimodal.nn.model import JOINT, Encoded, Net, unit

CLASSES = 5
CLASSIFIERS = {
    "both": {"of": "joint", "classes": CLASSES, "target": "label", "multi": False},
    "seen": {"of": "image", "classes": CLASSES, "target": "label", "multi": False},
}


class Evidence(nn.Module):
    """Without parameters: a modality's features are its input, and the joint ones are their sum."""

    modalities: dict
    classifiers: dict
    embed_dim: int = 3

    def encode(self, batch, rng=None):
        out = {}
        for m in self.modalities:
            present = batch.get(f"{m}_present", jnp.ones(len(batch[m]), bool))
            out[m] = self._encoded(jnp.where(present[:, None], batch[m] * 1.0, 0), present)
        total = sum(e.pooled for e in out.values())
        here = jnp.stack([e.present for e in out.values()]).any(0)
        return out | ({JOINT: self._encoded(total, here)} if len(out) > 1 else {})

    def _encoded(self, x, present):
        return Encoded(Tokens(x[:, None], present[:, None]), unit(x), present, x, x)

    def classify(self, encoded):
        return {n: encoded[c["of"]].pooled for n, c in self.classifiers.items()}


class Towers(Evidence):
    """Runs the modalities that it is given, as retrieval does."""

    def encode(self, batch, rng=None):
        some = self.clone(modalities={m: c for m, c in self.modalities.items() if m in batch})
        return Evidence.encode(some, batch)


def toy_net(modalities=("image", "audio"), classifiers=None):
    """A Net of it; 'image' is corrupted as pixels, the others as sounds."""
    kinds = {m: {"transform": "image" if m == "image" else "audio"} for m in modalities}
    return Net(Towers(kinds, CLASSIFIERS if classifiers is None else classifiers), {})


def toy_data(n=40, seed=0, wrong_sounds=0.0, name="dev"):
    """Records of an image and a sound that show the class, uint8 and float [n, 5].

    wrong_sounds: share of the records whose sound shows the next class instead, faintly.
    """
    labels = np.random.default_rng(seed).integers(0, CLASSES, n)
    heard = np.where(np.arange(n) < wrong_sounds * n, (labels + 1) % CLASSES, labels)
    image = (200 * np.eye(CLASSES)[labels]).astype(np.uint8)
    audio = (100 * np.eye(CLASSES)[heard]).astype(np.float32)
    ids = {m: np.arange(n) for m in ("image", "audio")}
    return EvalData(name, dict(image=image, audio=audio), ids, targets={"label": labels})
