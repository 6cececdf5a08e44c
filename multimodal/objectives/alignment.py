"""Adversarial alignment: a critic tells the modalities' embeddings apart, the encoders confuse it
(Ganin et al. 2016; Tzeng et al. 2015).
"""

import jax
import jax.numpy as jnp

from multimodal.errors import UserError
from multimodal.objectives.contrastive import choice
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean

stop = jax.lax.stop_gradient


def _points(net, out, frozen):
    """Embeddings [B, E] of the modalities that have some, their presences, and their class."""
    found = [
        (out[m].embed, out[m].present, i)
        for i, m in enumerate(net.model.modalities)
        if m in out and out[m].embed is not None
    ]
    if len(found) < 2:
        raise UserError("config.objectives: a modality critic needs two modalities with embeddings")
    return [(stop(e) if frozen else e, p, i) for e, p, i in found]


def _mean_over(points, fn):
    """Mean over the modalities of the masked mean of fn(embed, class) [B]."""
    return sum(masked_mean(fn(e, i), p) for e, p, i in points) / len(points)


@register("modality_critic", needs=("critic",), player="critic", partial=True)
def modality_critic(net, out, batch, rng):
    """The critic's cross-entropy at telling which modality an embedding comes from; the encoders
    get no gradient.

    Returns: loss, {'accuracy': of the critic, each modality weighted alike}.
    """
    points = _points(net, out, frozen=True)
    loss = _mean_over(points, lambda e, i: -jax.nn.log_softmax(net.criticise(e))[:, i])
    right = _mean_over(points, lambda e, i: (net.criticise(e).argmax(-1) == i).astype(jnp.float32))
    return loss, {"accuracy": right}


@register("modality_confusion", needs=("critic",), partial=True)
def modality_confusion(net, out, batch, rng, target="uniform"):
    """What the encoders gain when the critic, held fixed, cannot tell the modalities apart.

    Args:
      target: 'uniform' (the critic's cross-entropy with even odds, Tzeng et al. 2015: never
        rewards being taken for the other modality) or 'reverse' (minus the critic's own loss, the
        gradient reversal of Ganin et al. 2016).
    """
    choice("target", target, ("uniform", "reverse"))
    points = _points(net, out, frozen=False)

    def one(e, i):
        logp = jax.nn.log_softmax(net.frozen.criticise(e))
        if target == "reverse":
            return logp[:, i]
        seen = jnp.array([c for _, _, c in points])
        return -logp[:, seen].mean(-1)

    return _mean_over(points, one), {}
