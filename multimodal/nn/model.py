"""The one model: a dict of encoders, projections to a shared space, a fusion, heads. And Net, its
view as functions.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from multimodal.nn.critics import Perceptron
from multimodal.nn.dense import Dense
from multimodal.nn.encoders import build_encoder
from multimodal.nn.fusion import build_fusion
from multimodal.nn.joint import blocks_apart
from multimodal.nn.layers import ACTIVATIONS, Tokens, layer_norm, shard_batch
from multimodal.nn.quantize import quantized

stop = jax.lax.stop_gradient


class Encoded(struct.PyTreeNode):
    """What a modality's tower gives.

    Attributes:
      tokens: Tokens of the encoder.
      embed: [B, E] unit length, at least float32: the point in the shared space.
      present: [B] bool, False for an example without this modality.
      pooled: [B, D] the encoder's pooled features; of 'joint' the joint representation h_m.
      shared: [B, E] what embed is before it is brought to unit length.
    """

    tokens: Tokens
    embed: jax.Array | None
    present: jax.Array
    pooled: jax.Array | None = None
    shared: jax.Array | None = None

    @property
    def hidden(self):
        """The same as a fusion sees it where the modality is missing from every example."""
        none = self.tokens.replace(mask=jnp.zeros_like(self.tokens.mask))
        return self.replace(tokens=none, present=jnp.zeros_like(self.present))


def unit(x, eps=1e-12):
    """x / max(|x|, eps) in at least float32, with a finite gradient at zero."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), eps**2))


class MlmHead(nn.Module):
    """BERT's transform (dense, activation, LayerNorm) before the tied output layer, and that
    layer's bias.
    """

    vocab_size: int
    act: str = "gelu"
    eps: float = 1e-12
    dtype: str = "float32"

    def setup(self):
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))

    @nn.compact
    def __call__(self, x, attend):
        init = nn.initializers.normal(0.02)
        x = Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="transform")(x)
        x = layer_norm(self.eps, self.dtype, "norm")(ACTIVATIONS[self.act](x))
        logits = attend(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) + self.bias


JOINT = "joint"  # the key of the joint representation beside the modalities'


class Model(nn.Module):
    """Encoders by modality, projections to the shared space, one fusion, heads, one temperature.

    Every method is per example: row i of its output depends on row i of its inputs only.
    """

    modalities: dict  # name -> config of the encoder
    embed_dim: int = 256
    fusion: dict | None = None
    heads: tuple[str, ...] = ()  # of HEADS
    classifiers: dict | None = None  # name -> {of, classes, ...}, the config's model.classifiers
    critic_config: dict | None = None  # the config's model.critic
    scaling: dict | None = None  # the config's model.temperature
    mlm_modality: str = "text"
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @property
    def joins(self) -> bool:
        """Whether the fusion makes a joint representation of all modalities."""
        return bool(self.fusion) and self.fusion["kind"] == JOINT

    @property
    def noise_dim(self) -> int:
        """Numbers of noise that fill up h_m to the length of the modalities' own features."""
        return sum(c["width"] for c in self.modalities.values()) - self.fusion["width"]

    def _apart(self, c):
        """A tower's config with the blocks that run before the modalities meet."""
        if not self.joins or "depth" not in c:
            return c
        return {**c, "depth": blocks_apart(self.fusion["stage"], c["depth"], self.fusion["depth"])}

    def setup(self):
        cfgs = self.modalities
        shared = dict(dtype=self.dtype, attention_kernel=self.attention_kernel)
        self.encoder = {m: build_encoder(self._apart(c), **shared) for m, c in cfgs.items()}
        project = partial(Dense, self.embed_dim, kernel_init=nn.initializers.xavier_uniform())
        projected = {m: c["proj_bias"] for m, c in cfgs.items() if c["proj"]}
        if "retrieve" in self.heads:
            projected[JOINT] = True
        self.project = {m: project(use_bias=b, dtype=self.dtype) for m, b in projected.items()}
        if self.fusion:
            self.fuser = build_fusion(self.fusion, cfgs, **shared)
        self._setup_heads()
        t = self.scaling or {}
        if t.get("kind", "none") != "none":
            start = math.log(1 / t["init"]) if t["kind"] == "log_scale" else t["init"]
            self.temp = self.param("temperature", nn.initializers.constant(start), ())
        if t.get("bias") is not None:
            self.bias = self.param("logit_bias", nn.initializers.constant(t["bias"]), ())

    def _setup_heads(self):
        dense = partial(Dense, kernel_init=nn.initializers.normal(0.02), dtype=self.dtype)
        if "match" in self.heads:
            self.match_head = dense(2)
        if "mlm" in self.heads:
            c = self.modalities[self.mlm_modality]
            self.mlm_head = MlmHead(c["vocab_size"], c["act"], c["eps"], self.dtype)
        if self.classifiers:
            self.classifier = {name: dense(c["classes"]) for name, c in self.classifiers.items()}
        perceptron = partial(Perceptron, **(self.critic_config or {}))
        if "critic" in self.heads:
            self.critic = perceptron(len(self.modalities))
        if "discriminator" in self.heads:
            self.discriminator = perceptron(1)
        if "decoder" in self.heads:
            features = self.noise_dim + self.fusion["width"]
            self.decoder = perceptron(features, spectral=False)
        if "posterior" in self.heads:
            self.posterior_head = dense(2 * self.noise_dim)

    def encode(self, batch, rng=None):
        """Run the towers of the modalities that are keys of the batch.

        Args:
          batch: flat dict; `m` raw input, `m_present` [B] bool and `m_mask` [B, L] bool optional,
            `index` [B] int32 optional, which tells examples apart for dropout.
          rng: PRNG key that switches dropout on.
        Returns: {m: Encoded}, and 'joint' where the fusion makes one and all modalities are keys.
        """
        out = {}
        for i, m in enumerate(self.modalities):
            if m not in batch:
                continue
            b = len(batch[m])
            present = batch.get(f"{m}_present", jnp.ones(b, bool))
            keys = None
            if rng is not None:
                keys = example_keys(jax.random.fold_in(rng, i), batch.get("index", jnp.arange(b)))
            tokens, pooled = self.encoder[m](batch[m], present, keys, batch.get(f"{m}_mask"))
            out[m] = self._encoded(m, tokens, pooled, present)
        if self.joins and len(out) == len(self.modalities):
            out[JOINT] = self.join(out)
        return out

    def join(self, encoded):
        """The Encoded of the joint representation h_m, from those of all modalities."""
        parts = {m: encoded[m] for m in self.modalities}
        present = jnp.stack([e.present for e in parts.values()]).any(0)
        return self._encoded(JOINT, *self.fuser(parts), present)

    def _encoded(self, m, tokens, pooled, present):
        shared = embed = None
        if pooled is not None and (m != JOINT or m in self.project):
            shared = self.project[m](pooled) if m in self.project else pooled
            embed = shard_batch(unit(shared))
        return Encoded(tokens, embed, present, pooled, shared)

    def classify(self, encoded):
        """{classifier: logits [B, C]} of what encode returned."""
        logits = {
            name: self.classifier[name](encoded[c["of"]].pooled)
            for name, c in (self.classifiers or {}).items()
            if c["of"] in encoded
        }
        return {k: v.astype(jnp.promote_types(v.dtype, jnp.float32)) for k, v in logits.items()}

    def criticise(self, embed):
        """[B, M] logits: which of the modalities does this point of the shared space come from?"""
        return self.critic(embed)

    def discriminate(self, features):
        """[B] logits: are these features the modalities' own (high) or generated (low)?"""
        return self.discriminator(features)[..., 0]

    def decode(self, joint):
        """[B, sum of D_m] features from (h_m, z) of the same length."""
        return self.decoder(joint)

    def posterior(self, h):
        """(mean, log variance) [B, noise_dim] of the noise that goes with h_m [B, D]."""
        out = self.posterior_head(h)
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        return out[:, : self.noise_dim], out[:, self.noise_dim :]

    def fuse(self, query: Tokens, context: Tokens) -> Tokens:
        """The fusion's Tokens for query over context."""
        return self.fuser(query, context)

    def match(self, fused: Tokens):
        """[B, 2] logits from the fused class token; class 1 says that the pair belongs together."""
        logits = self.match_head(fused.x[:, 0])
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def mlm(self, tokens: Tokens):
        """[B, L, V] logits of the masked-language-modelling head, tied to the token embedding."""
        return self.mlm_head(tokens.x, self.encoder[self.mlm_modality].attend)

    def scale(self):
        """The factor on cosine similarities: exp(p) for a log scale (CLIP), 1 / p for a temperature
        (ALBEF).
        """
        kind = (self.scaling or {}).get("kind", "none")
        if kind == "none":
            return jnp.ones(())
        return jnp.exp(self.temp) if kind == "log_scale" else 1.0 / self.temp

    def logit_bias(self):
        """SigLIP's bias on the logits; 0 where the model has none."""
        return self.bias if (self.scaling or {}).get("bias") is not None else jnp.zeros(())

    def __call__(self, batch):
        """Touch every parameter; used to initialise."""
        out = self.encode(batch)
        self.scale(), self.logit_bias(), self.classify(out)
        if "critic" in self.heads:
            self.criticise(next(e.embed for e in out.values() if e.embed is not None))
        if {"discriminator", "decoder"} & set(self.heads):
            features = jnp.zeros((2, self.noise_dim + self.fusion["width"]))
            self.decode(features) if "decoder" in self.heads else None
            self.discriminate(features) if "discriminator" in self.heads else None
        if "posterior" in self.heads:
            self.posterior(jnp.zeros((2, self.fusion["width"])))
        query = out.get(self.mlm_modality)
        if self.fusion and not self.joins:
            other = next(e for m, e in out.items() if m != self.mlm_modality)
            fused = self.fuse(query.tokens, other.tokens)
            if "match" in self.heads:
                self.match(fused)
        if "mlm" in self.heads:
            self.mlm(query.tokens)
        return out


def build_model(config) -> Model:
    """The model of a config (the whole one, or its `model` part with `modalities`)."""
    plain = config.to_dict() if hasattr(config, "to_dict") else config
    m = plain["model"]
    model = Model(
        modalities=plain["modalities"],
        embed_dim=m["embed_dim"],
        fusion=m["fusion"] if m["fusion"]["kind"] != "none" else None,
        heads=tuple(m["heads"]),
        classifiers=m.get("classifiers"),
        critic_config=m.get("critic"),
        scaling=m["temperature"],
        mlm_modality=m["mlm_modality"],
        attention_kernel=m.get("attention_kernel", "auto"),
        dtype=m["dtype"],
    )
    return quantized(model, m["quantize"]) if m.get("quantize") else model


def bounded(params, temperature: dict):
    """params with the temperature put back into its bounds, as CLIP and ALBEF do after each step.

    Bounds are given as temperatures: [0.01, 1] is CLIP's log scale in [0, ln 100].
    """
    if temperature["kind"] == "none":
        return params
    low, high = temperature["min"], temperature["max"]
    if temperature["kind"] == "log_scale":
        low, high = -math.log(high), -math.log(low)
    return {**params, "temperature": jnp.clip(params["temperature"], low, high)}


def example_keys(rng, index):
    """One PRNG key an example [B], from its index: independent of the batch around it."""
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A model's methods as pure functions, closed over parameters.

    `net.encode(batch)`, `net.fuse(query, context)`, `net.match(tokens)`, `net.mlm(tokens)`,
    `net.scale()`, and whatever methods a fork adds to Model. `net.teacher` is the EMA copy and
    `net.frozen` this one, both without gradient.

    Attributes:
      model, params: the module and its parameters.
      ema: parameters of the teacher.
      queue: the momentum queue of the train state (objectives.queue), or None.
      rng: PRNG key that switches dropout on.
      teacher_rng: the same for the teacher (the original ALBEF drops out in its teacher as well).
      chunks: micro-batches. Per-example work then holds one micro-batch's activations at a time;
        results are those of one batch.
    """

    model: Model
    params: dict
    ema: dict | None = None
    queue: dict | None = None
    rng: jax.Array | None = None
    teacher_rng: jax.Array | None = None
    chunks: int = 1

    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(type(self.model), name):
            raise AttributeError(f"{type(self.model).__name__} has no method {name}")
        return partial(self.model.apply, {"params": self.params}, method=name)

    def encode(self, batch, rng=None):
        """Model.encode in micro-batches; dropout only where this net has a PRNG key."""
        if self.rng is None:
            rng = None
        else:  # a net's own key in it, so that student and teacher draw apart
            rng = self.rng if rng is None else jax.random.fold_in(rng, jax.random.bits(self.rng))
        if "index" not in batch:
            batch = batch | {"index": jnp.arange(len(next(iter(batch.values()))))}
        return self.per_example(lambda net, b: net.__getattr__("encode")(b, rng=rng), batch)

    def per_example(self, fn, *args):
        """fn(net, *args) for a function that treats examples apart, in micro-batches.

        args and results are pytrees of arrays with a leading batch axis.
        """
        if self.chunks == 1:
            return fn(self, *args)
        one = dataclasses.replace(self, chunks=1)
        k = self.chunks

        # Strided, not contiguous, so that each micro-batch spreads over all devices.
        def split(v):
            return jnp.moveaxis(v.reshape(-1, k, *v.shape[1:]), 1, 0)

        def join(v):
            return jnp.moveaxis(v, 0, 1).reshape(-1, *v.shape[2:])

        out = jax.lax.map(jax.checkpoint(lambda a: fn(one, *a)), jax.tree.map(split, args))
        return jax.tree.map(join, out)

    @property
    def frozen(self):
        """This net without gradient."""
        return dataclasses.replace(self, params=stop(self.params))

    @property
    def teacher(self):
        """The EMA net, without gradient."""
        return dataclasses.replace(self, params=stop(self.ema), rng=self.teacher_rng)
