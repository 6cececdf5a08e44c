"""Critics and decoders of the adversarial objectives: small multilayer perceptrons."""

import jax
import jax.numpy as jnp
from flax import linen as nn

stop = jax.lax.stop_gradient


def spectral_norm(w, iterations=30):
    """The largest singular value of w [N, M], a little from below: power iteration from a fixed
    start, within about 2 % of a random matrix's. Its gradient
    is that of u^T w v at fixed u, v (Miyato et al. 2018, algorithm 1, with nothing kept between
    steps).
    """
    u = jnp.ones((w.shape[0],), w.dtype)
    fixed = stop(w)

    def normalise(x):
        return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)

    for _ in range(iterations):
        v = normalise(fixed.T @ u)
        u = normalise(fixed @ v)
    return u @ w @ v


class SpectralDense(nn.Module):
    """A dense layer, its matrix divided by its spectral norm where `spectral` is set."""

    width: int
    spectral: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        kernel = kernel / spectral_norm(kernel) if self.spectral else kernel
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class Perceptron(nn.Module):
    """`layers` hidden layers with leaky rectifiers, then a linear one to `outputs` numbers.

    No normalisation over the batch: an example's output is its own, and gradient penalties need
    that.
    """

    outputs: int
    hidden: int = 256
    layers: int = 2
    spectral: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for i in range(self.layers):
            dense = SpectralDense(self.hidden, self.spectral, name=f"hidden_{i}")
            x = nn.leaky_relu(dense(x), 0.2)
        return SpectralDense(self.outputs, self.spectral, name="out")(x)
