"""A variational autoencoder around the joint representation (Kingma & Welling 2014)."""

import jax
import jax.numpy as jnp

from multimodal.nn.model import JOINT
from multimodal.objectives.adversarial import players
from multimodal.objectives.registry import register
from multimodal.objectives.sampling import masked_mean

stop = jax.lax.stop_gradient


def kl_to_normal(mu, log_var):
    """KL divergence [B] of N(mu, exp(log_var)) from N(0, I), summed over the dimensions."""
    return -0.5 * (1 + log_var - mu**2 - jnp.exp(log_var)).sum(-1)


def negative_elbo(x, reconstruction, mu, log_var, beta=1.0):
    """Mean squared error of each x [B, F] plus beta times its KL divergence [B] (Higgins et al.
    2017); MultiBench's mean over L dimensions times its annealing factor a is beta = a / L.
    """
    return jnp.square(reconstruction - x).mean(-1) + beta * kl_to_normal(mu, log_var)


@register("elbo", needs=("posterior", "decoder", "joint"))
def elbo(net, out, batch, rng, beta=0.01, noise=None):
    """Minus the evidence lower bound of the modalities' own features, x ~ decoder(h_m, z), with z
    drawn from a posterior that the head of that name reads off h_m. The features get no gradient
    as targets. Together with `generator` and `discriminator`: VAE-GAN (Larsen et al. 2016).

    Args:
      beta: weight of the KL divergence (a number or a schedule).
      noise: [B, noise_dim] standard normal to use instead of drawing (parity tests).
    Returns: loss, {'reconstruction': mean squared error, 'kl': nats}.
    """
    x, joint, present = players(net, out, batch, rng, noise)
    h, noise = jnp.split(joint, [joint.shape[1] - net.model.noise_dim], axis=-1)
    mu, log_var = net.posterior(out[JOINT].pooled)
    z = mu + jnp.exp(log_var / 2) * noise
    made = net.decode(jnp.concatenate([h, z.astype(h.dtype)], axis=-1))
    loss = masked_mean(negative_elbo(stop(x), made, mu, log_var, beta), present)
    error = masked_mean(jnp.square(made - stop(x)).mean(-1), present)
    return loss, {"reconstruction": error, "kl": masked_mean(kl_to_normal(mu, log_var), present)}
