"""Fusions: Tokens of one modality over Tokens of another, or all modalities into one (joint.py)."""

import dataclasses

from flax import linen as nn

from multimodal.nn.joint import JointFusion, blocks_apart
from multimodal.nn.layers import Stack, Tokens, block_config, fold_keys, layer_norm, layers_of
from multimodal.registry import lookup

FUSIONS: dict[str, type[nn.Module]] = {}


def register_fusion(name):
    """Class decorator: make a fusion known to configs as `fusion.kind = name`."""

    def add(cls):
        FUSIONS[name] = cls
        return cls

    return add


def build_fusion(cfg: dict, modalities: dict, **shared) -> nn.Module:
    """The fusion that the config's `fusion` asks for, of these modalities ({m: its config}).

    shared: fields that are the whole model's: dtype, attention_kernel.
    """
    cls = lookup(FUSIONS, cfg["kind"], "config.model.fusion.kind", kind=nn.Module)
    fields = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    known = {k: v for k, v in {**cfg, **shared}.items() if k in fields}
    if "names" in fields:
        known["names"] = tuple(modalities)
    if "together" in fields:
        depths = [c.get("depth", 0) for c in modalities.values()]
        apart = [blocks_apart(cfg["stage"], d, cfg["depth"]) for d in depths]
        known["together"] = tuple(d - a for d, a in zip(depths, apart, strict=True))
    return cls(**known)


register_fusion("joint")(JointFusion)


@register_fusion("cross_attention")
class CrossAttentionFusion(nn.Module):
    """Blocks of self-attention on the query and cross-attention to the context.

    With post-norm blocks of the text encoder's sizes this is the upper half of ALBEF's BERT (Li et
    al. 2021, section 3.1).
    """

    width: int = 768
    depth: int = 6
    heads: int = 12
    mlp_dim: int = 3072
    act: str = "gelu"
    norm: str = "post"
    eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    scan: bool = False
    unroll: int = 1
    remat: str = "none"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, query: Tokens, context: Tokens) -> Tokens:
        cfg = block_config(self, cross=True)
        stack = Stack(cfg, layers_of(self), name="stack")
        x = stack(query.x, fold_keys(query.keys, 0), query.mask, context)
        x = layer_norm(self.eps, self.dtype, "norm_final")(x) if self.norm == "pre" else x
        return Tokens(x, query.mask, fold_keys(query.keys, 1))
