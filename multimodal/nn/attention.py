"""softmax(q k^T / sqrt(d)) v by the kernel that suits the device: one switch, the same values."""

import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from multimodal.nn.batch import batch_axes, device_count, dropout

# 'auto' | 'xla' | 'cudnn' (GPU, half precision) | 'flash' (TPU, Pallas) | 'bfloat16' (see rounded)
KERNELS = ("auto", "xla", "cudnn", "flash", "bfloat16")
PLATFORMS = {"cudnn": "gpu", "flash": "tpu"}
# Shorter than this XLA's own fusions win on a TPU: the transposes around the kernel cost more than
# all of them. On a GPU cuDNN's kernel wins from UNMASKED on; a mask becomes a matrix for it.
LONG, UNMASKED = 512, 64
LANES = 128  # rows and columns of a TPU's tile


def is_half(dtype):
    """Whether a number of this type has 16 bits."""
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)


def examples_a_row(x, dtype, kernel) -> int:
    """How many examples of x [B, T, D] may share a row of 'bfloat16' attention in this type so that
    the row fills a TPU's tile: 64 tokens by themselves would pay for 128. 1 where that does not
    come out even. They do not see each other, but a number that is not finite does go over.
    """
    b, t = x.shape[:2]
    if kernel != "bfloat16" or jnp.dtype(dtype) != jnp.bfloat16 or t >= LANES or LANES % t:
        return 1
    share = LANES // t
    return share if b % (share * device_count(batch_axes(b))) == 0 else 1


def tokens_to_add(length, depth, dtype, kernel) -> int:
    """How many tokens a stack of self-attention without masks or dropout adds to so many, at the
    end: 1 where cuDNN attends and they are odd, else 0. It differentiates even lengths only, and
    queries, keys and values of each layer would be copied. `depth`: of a head.
    """
    return length % 2 if best_kernel(kernel, dtype, length, length, depth) == "cudnn" else 0


def attend(q, k, v, mask=None, causal=False, rate=0.0, keys=None, kernel="auto", length=0, real=0):
    """softmax(q k^T / sqrt(d)) v for q [B, T, H, d], k and v [B, S, H, d], mask [B, S].

    Args:
      rate, keys: dropout of the probabilities with one PRNG key [B] an example.
      kernel: one of KERNELS. Dropout and float64 go by the formula whatever it says: the kernels
        have no dropout by example, and take their softmax in float32.
      length: rows are several examples of so many tokens, which do not see each other; 0: one.
        For what examples_a_row allows.
      real: tokens before those that a stack has added for cuDNN (tokens_to_add); 0: none was.
    Returns: [B, T, H, d]; of an example without any key something finite.
    """
    formula = q.dtype == jnp.float64 or (rate and keys is not None)
    if kernel == "bfloat16" and not formula:
        t, s = q.shape[1], k.shape[1]
        # Lengths that fill no tiles (196, 77) are slower this way: XLA copies them between layouts.
        if q.dtype == jnp.bfloat16 and min(t, s) < LONG and not (t % LANES or s % LANES):
            return rounded(q, k, v, mask, causal, length)
        kernel = "auto"
    if length:
        raise ValueError("only what examples_a_row allows may share rows")
    lengths, masked = (q.shape[1], k.shape[1]), mask is not None
    kernel = best_kernel(kernel, q.dtype, *lengths, q.shape[-1], masked)
    if formula:
        out = by_formula(q, k, v, mask, causal, rate, keys)
    elif kernel == "cudnn":  # its own output is what is kept of it: layers.is_cudnn
        return cudnn(q, k, v, mask, causal, real)
    else:
        out = by_kernel(q, k, v, mask, causal, kernel)
    return checkpoint_name(out, "context")


def by_kernel(q, k, v, mask, causal, kernel):
    """attend without dropout by 'xla' or 'flash'."""
    if kernel == "flash":
        return flash(q, k, v, mask, causal)
    mask = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")


def best_kernel(kernel, dtype, t, s, depth, masked=False):
    """`kernel`, or what 'auto' takes on the default backend for t queries and s keys of `depth`."""
    platform = jax.default_backend()
    if kernel != "auto":
        return kernel
    if min(t, s) < (UNMASKED if platform == "gpu" and not masked else LONG):
        return "xla"
    if platform == "gpu" and is_half(dtype) and depth % 8 == 0 and depth <= 128:
        return "cudnn" if has_cudnn() else "xla"
    return "flash" if platform == "tpu" else "xla"


@functools.cache
def has_cudnn():
    """Whether cuDNN's attention runs here: on NVIDIA's GPUs from Ampere on."""
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    return bool(re.fullmatch(r"\d+\.\d+", capability)) and float(capability) >= 8


def cudnn(q, k, v, mask=None, causal=False, real=0):
    """attend by cuDNN's kernel for GPUs, which never holds [T, S] but for a mask.

    JAX lets it differentiate even lengths only: odd ones get a token more, which no other sees.
    """
    t, s = q.shape[1], k.shape[1]
    real = real or s
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    attention = partial(
        jax.nn.dot_product_attention, q, k, v, is_causal=causal, implementation="cudnn"
    )
    if mask is not None:  # takes a bias of the whole matrix only
        mask = jnp.pad(mask, ((0, 0), (0, s % 2)))
        shape = len(q), 1, q.shape[1], k.shape[1]
        out = attention(mask=jnp.broadcast_to(mask[:, None, None, :], shape))
    elif real == k.shape[1] or (causal and t == s):  # what is filled comes last: the past is real
        out = attention()
    else:
        out = attention(key_value_seq_lengths=jnp.full(len(q), real, jnp.int32))
    return out[:, :t]


def by_formula(q, k, v, mask=None, causal=False, rate=0.0, keys=None):
    """attend without a kernel: any dtype, and dropout of the probabilities."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=dtype)
    logits = hidden(logits / jnp.sqrt(jnp.asarray(q.shape[-1], dtype)), mask, causal)
    probs = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhts,bshd->bthd", dropout(probs, rate, keys).astype(v.dtype), v)


def hidden(logits, mask, causal, length=0):
    """logits [B, H, T, S] with what mask [B, S] and causality hide at a finite floor, not -inf: a
    row with nothing to look at must not become NaN. Other examples in the row, of `length` tokens,
    are at a lower floor, so that it does not look at those either.
    """
    floor = jnp.finfo(logits.dtype).min / 4
    allowed = None if mask is None else mask[:, None, None, :]
    if causal:
        past = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        allowed = past if allowed is None else past & allowed
    logits = logits if allowed is None else jnp.where(allowed, logits, floor)
    if length:
        example = jnp.arange(logits.shape[-1]) // length
        logits = jnp.where(example[:, None] == example, logits, 2 * floor)
    return logits


def rounded(q, k, v, mask=None, causal=False, length=0):
    """attend in bfloat16 with half the memory traffic: logits and numerators rounded, sums of rows
    in float32, division after the product with the values.
    """
    logits = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32)
    logits = hidden((logits * q.shape[-1] ** -0.5).astype(q.dtype), mask, causal, length)
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp((logits - top).astype(jnp.float32)).astype(q.dtype)
    total = weights.astype(jnp.float32).sum(-1).swapaxes(1, 2)[..., None]
    return divided(jnp.einsum("bhts,bshd->bthd", weights, v), total)


@jax.custom_vjp
def divided(x, total):
    """x / total, whose gradient takes the quotient and not x: where remat keeps what attention
    gives, the product that x comes from is not computed again.
    """
    return _divided(x, total)[0]


def _divided(x, total):
    out = checkpoint_name((x.astype(jnp.float32) / total).astype(x.dtype), "context")
    return out, (out, total)


def _divided_gradient(kept, g):
    out, total = kept
    g = g.astype(jnp.float32) / total
    return g.astype(out.dtype), -(g * out.astype(jnp.float32)).sum(-1, keepdims=True)


divided.defvjp(_divided, _divided_gradient)


def flash(q, k, v, mask=None, causal=False):
    """attend by the Pallas kernel for TPUs, which never holds [T, S]; each device has its part of
    the batch.
    """
    axes = batch_axes(len(q))
    local = partial(_flash, causal=causal)
    if not axes:
        return local(q, k, v, mask)
    spec = PartitionSpec(axes)
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(q, k, v, mask)


def _flash(q, k, v, mask, causal):
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    (b, t, _, d), s = q.shape, k.shape[1]
    q, k, v = (_padded(x).swapaxes(1, 2) for x in (q, k, v))
    segments = None
    if mask is not None or k.shape[2] != s:  # queries look at keys of their own segment, 1
        real = jnp.ones((b, s), bool) if mask is None else mask
        segments = SegmentIds(jnp.ones((b, q.shape[2]), jnp.int32), _padded(real).astype(jnp.int32))
    out = flash_attention(
        q, k, v, None, segments, causal=causal, sm_scale=d**-0.5,
        block_sizes=_blocks(q.shape[2], k.shape[2]),
    )  # fmt: skip
    return out.swapaxes(1, 2)[:, :t]


def _padded(x):
    """x with its second axis filled up to whole tiles."""
    extra = -x.shape[1] % LANES
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2)) if extra else x


def _blocks(t, s):
    """As large as divides, up to 512: the kernel's own default of 128 leaves a TPU idle."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes

    rows, columns = (next(n for n in (512, 256, LANES) if size % n == 0) for size in (t, s))
    q = {f.name: rows for f in dataclasses.fields(BlockSizes) if "block_q" in f.name}
    k = {f.name: columns for f in dataclasses.fields(BlockSizes) if "block_k" in f.name}
    return BlockSizes(block_b=1, **q, **k)
