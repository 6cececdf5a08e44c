"""Adversarial learning of the joint representation: a generator h_m = G(x_1, x_2, ...) against a
discriminator of real features (Goodfellow et al. 2014).

Real is the concatenation of the modalities' own features; generated is the joint representation
with noise, (h_m, z), z filling it up to the same length, or what the decoder makes of (h_m, z).
"""

import jax
import jax.numpy as jnp

from multimodal.nn.model import JOINT, example_keys
from multimodal.objectives.contrastive import choice
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import index_of, masked_mean

stop = jax.lax.stop_gradient
KINDS = ("bce", "hinge", "wasserstein")


def discriminator_losses(kind, real, fake):
    """(loss of each real logit, loss of each generated logit).

    'bce': -log D(x), -log(1 - D(G)); 'hinge': max(0, 1 - f), max(0, 1 + f) (Lim & Ye 2017);
    'wasserstein': -f, f (Arjovsky et al. 2017).
    """
    choice("kind", kind, KINDS)
    if kind == "bce":
        return jax.nn.softplus(-real), jax.nn.softplus(fake)
    if kind == "hinge":
        return jax.nn.relu(1 - real), jax.nn.relu(1 + fake)
    return -real, fake


def generator_losses(kind, fake):
    """Loss of each generated logit for the generator: -log D(G) ('bce'), else -f."""
    choice("kind", kind, KINDS)
    return jax.nn.softplus(-fake) if kind == "bce" else -fake


def noise_like(rng, batch, size, dim, dtype):
    """Standard normal z [B, dim], keyed by example."""
    keys = example_keys(rng, index_of(batch, size))
    return jax.vmap(lambda k: jax.random.normal(k, (dim,), dtype))(keys)


def players(net, out, batch, rng, noise):
    """(real [B, F], (h_m, z) [B, F], [B] bool: examples with every modality); noise: z, or None."""
    modalities = net.model.modalities
    real = jnp.concatenate([out[m].pooled for m in modalities], axis=-1)
    present = jnp.stack([out[m].present for m in modalities]).all(0)
    h = out[JOINT].pooled
    if noise is None:
        noise = noise_like(rng, batch, len(h), net.model.noise_dim, h.dtype)
    return real, jnp.concatenate([h, noise], axis=-1), present


def _generate(net, joint):
    return net.decode(joint) if "decoder" in net.model.heads else joint


@register("generator", needs=("discriminator", "joint"))
def generator(net, out, batch, rng, kind="bce", reconstruction=0.0, noise=None):
    """L_G = -E log D(G(z)) (or its hinge and Wasserstein forms), against a fixed discriminator.

    With the head 'decoder' G(z) is what it makes of (h_m, z), else (h_m, z) itself.

    Args:
      kind: 'bce' | 'hinge' | 'wasserstein', as the discriminator's.
      reconstruction: weight of the decoder's mean squared error from the real features.
      noise: [B, noise_dim] to use instead of drawing (parity tests).
    Returns: loss, {'fooled': share of generated taken for real, 'spread': mean standard deviation
      of h_m over the batch, 'rank': its effective rank (Roy & Vetterli 2007), 'collapsed': 1 where
      the spread is below 1e-3 or the rank below 1.5}.
    """
    real, joint, present = players(net, out, batch, rng, noise)
    fake = _generate(net, joint)
    logits = net.frozen.discriminate(fake)
    loss = masked_mean(generator_losses(kind, logits), present)
    metrics = {"fooled": masked_mean((logits > 0).astype(loss.dtype), present)}
    if "decoder" in net.model.heads:
        error = masked_mean(jnp.square(fake - stop(real)).mean(-1), present)
        loss, metrics["reconstruction"] = loss + reconstruction * error, error
    return loss, metrics | collapse(stop(out[JOINT].pooled), present)


@register("discriminator", needs=("discriminator", "joint"), player="critic")
def discriminator(
    net, out, batch, rng, kind="bce", r1=0.0, gradient_penalty=0.0, noise=None, mix=None
):
    """L_D = -E log D(x) - E log(1 - D(G(z))) (or its hinge and Wasserstein forms); the modalities'
    features and the generator get no gradient.

    Args:
      kind: 'bce' | 'hinge' | 'wasserstein'.
      r1: weight of E |grad f(x)|^2 / 2 at real features (Mescheder et al. 2018).
      gradient_penalty: weight of E (|grad f| - 1)^2 between real and generated ones (Gulrajani et
        al. 2017).
      noise, mix: [B, noise_dim] and [B] in 0..1 to use instead of drawing.
    Returns: loss, {'accuracy': real above and generated below 0, 'real', 'fake': mean logits}.
    """
    real, joint, present = players(net.frozen, out, batch, rng, noise)
    real, fake = stop(real), stop(_generate(net.frozen, joint))
    f_real, f_fake = net.discriminate(real), net.discriminate(fake)
    losses = discriminator_losses(kind, f_real, f_fake)
    loss = sum(masked_mean(x, present) for x in losses)
    metrics = {
        "accuracy": masked_mean(((f_real > 0).astype(loss.dtype) + (f_fake < 0)) / 2, present),
        "real": masked_mean(f_real, present),
        "fake": masked_mean(f_fake, present),
    }
    if _on(r1):
        slope = _slopes(net, real)
        metrics["r1"] = masked_mean(slope**2, present)
        loss = loss + r1 / 2 * metrics["r1"]
    if _on(gradient_penalty):
        if mix is None:
            keys = example_keys(jax.random.fold_in(rng, 1), index_of(batch, len(real)))
            mix = jax.vmap(jax.random.uniform)(keys)
        slope = _slopes(net, mix[:, None] * real + (1 - mix[:, None]) * fake)
        metrics["penalty"] = masked_mean((slope - 1) ** 2, present)
        loss = loss + gradient_penalty * metrics["penalty"]
    return loss, metrics


def _on(weight):
    """Whether a weight is anything but a plain 0; a schedule's value is an array."""
    return not isinstance(weight, int | float) or weight != 0


def _slopes(net, x):
    """|grad f(x)| [B] of the discriminator's logit; finite where the gradient is zero."""
    grads = jax.grad(lambda v: net.discriminate(v).sum())(x)
    return jnp.sqrt((grads**2).sum(-1) + 1e-12)


def collapse(h, present):
    """Whether representations h [B, D] have become one point or one line; see `generator`."""
    w, h = present[:, None], h.astype(jnp.float32)
    n = jnp.maximum(present.sum(), 1)
    h = jnp.where(w, h - jnp.where(w, h, 0).sum(0) / n, 0)
    variance = (h**2).sum(0) / n
    spread = jnp.sqrt(variance).mean()
    gram = jnp.matmul(h.T, h) if h.shape[1] <= h.shape[0] else jnp.matmul(h, h.T)
    values = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram), 0))
    share = values / jnp.maximum(values.sum(), 1e-12)
    rank = jnp.exp(-jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0).sum())
    gone = (present.sum() > 1) & ((spread < 1e-3) | (rank < 1.5))
    return {"spread": spread, "rank": rank, "collapsed": gone.astype(jnp.float32)}
