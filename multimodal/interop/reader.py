"""What reads a model's config off the names and sizes of weights."""

import dataclasses
import math
import re
from collections.abc import Callable

from multimodal.errors import UserError
from multimodal.interop.hints import settle_act, settle_heads

CLIP_PIXELS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF_PIXELS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
NO_TEMPERATURE = {"kind": "none", "init": 1.0, "min": 1.0, "max": 1.0, "bias": None}


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to name weights.

    Attributes:
      table: fn(config, prefix, names) -> Table, names telling what modalities are called here.
      marker: regex of a name that only this format has; its group is the prefix.
      config: fn(Reader) -> (modalities, model), what the weights' sizes say.
      towers: of 'image', 'text', 'audio', 'video', those that it has.
      prefix: fn(config) -> prefix to export with.
      fits: fn(state, prefix, codebase's config) -> bool, where the marker alone does not tell.
      sizes: fn(modality's config) -> what of it weights do not tell, under the codebase's names.
    """

    table: Callable
    marker: str
    config: Callable
    towers: tuple[str, ...] = ("image",)
    prefix: Callable = lambda config: ""
    fits: Callable = lambda state, prefix, config: True
    sizes: Callable = lambda c: {}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A state dict and what lies beside it, while a model's config is read from it."""

    state: dict
    prefix: str
    where: str
    hints: dict
    act: object
    heads: object
    is_clip: bool = False

    def shape(self, name):
        """Shape of an array of theirs. Raises UserError if there is none."""
        if name not in self.state:
            raise UserError(f"{self.where}: no {name}, which this format must have")
        return self.state[name].shape

    def said(self, m, key, default=None):
        """What the codebase's own config says of a modality. Raises UserError for silence without
        a default."""
        value = self.hints.get(m, {}).get(key, default)
        if value is None:
            raise UserError(
                f"{self.where}: weights do not tell {key} and no config.json lies beside them: "
                f"give config={{'model_type': ..., '{key}': ...}}"
            )
        return value

    def depth(self, start):
        """Number of layers under a prefix."""
        found = [re.match(re.escape(start) + r"(\d+)\.", k) for k in self.state]
        found = [int(m[1]) for m in found if m]
        if not found:
            raise UserError(f"{self.where}: no layers under {start}")
        return max(found) + 1

    def block(self, m, start, up, eps):
        """Sizes and switches that a tower's blocks share."""
        return {
            "depth": self.depth(start),
            "mlp_dim": self.shape(f"{start}0.{up}.weight")[0],
            "heads": settle_heads(m, self.heads, self.hints, self.where),
            "act": settle_act(m, self.act, self.hints, self.where, self.is_clip),
            "eps": float(self.hints.get(m, {}).get("eps", eps)),
        }

    def vit(self, conv, positions, start, up, eps, pixels, **switches):
        """Config of a ViT; `switches` are the fields that names alone tell."""
        width, _, patch, _ = self.shape(f"{conv}.weight")
        count = self.shape(positions)[-2] - switches["class_token"]
        if math.isqrt(count) ** 2 != count:
            raise UserError(f"{self.where}: {positions} has {count} patches, not a square")
        defaults = {
            "pre_norm": False,
            "final_norm": "tokens",
            "pool": "class",
            "pooler": False,
            "proj": False,
        }
        return {
            "encoder": "vit",
            "size": patch * math.isqrt(count),
            "patch": patch,
            "width": width,
            "patch_bias": f"{conv}.bias" in self.state,
            "proj_bias": False,
            **self.block("image", start, up, eps),
            **pixels,
            **defaults,
            **switches,
        }

    def text(self, words, positions, start, up, eps, **switches):
        """Config of a text Transformer."""
        vocab_size, width = self.shape(words)
        defaults = {
            "norm": "pre",
            "causal": False,
            "mask_padding": False,
            "type_embed": 0,
            "embed_norm": False,
            "final_norm": True,
            "pooler": False,
            "eot_id": self.hints.get("text", {}).get("eot_id", -1),
        }
        return {
            "encoder": "text",
            "vocab_size": vocab_size,
            "width": width,
            "max_length": self.shape(positions)[0],
            **self.block("text", start, up, eps),
            **defaults,
            **switches,
        }


def model_config(embed_dim, temperature=NO_TEMPERATURE, fusion=None, heads=()):
    """The `model` part of a config."""
    return {
        "embed_dim": embed_dim,
        "fusion": fusion or {"kind": "none"},
        "heads": heads,
        "temperature": dict(temperature),
        "mlm_modality": "text",
        "dtype": "float32",
    }


def single(m, make, **kwargs):
    """The config of a format that is one tower of modality m."""

    def config(r):
        c = make(r, **kwargs)
        return {m: c}, model_config(c["width"])

    return config
