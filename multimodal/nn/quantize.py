"""Matrix products of the Transformer blocks in eight bits, by qwix (optional extra `quantize`)."""

import jax.numpy as jnp

from multimodal.errors import UserError

# name -> types of weights, activations, gradients
TYPES = {
    "int8": (jnp.int8, jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e4m3fn, jnp.float8_e5m2),
}
# The dense layers of the blocks, where the time goes; not the products of activations with each
# other, embeddings, projections or heads.
WHERE = r".*(attention|mlp)/.*"
METHODS = ("encode", "join", "fuse")  # of Model: those that run blocks


def quantized(model, kind: str):
    """The model with the dense layers of its blocks in eight bits, forward and backward.

    Parameters stay as they are (float32 masters); scales are the largest magnitude of a row of
    activations and a column of weights, found anew at each step. The gradient of a weight sums over
    the batch in eight bits, so that micro-batches change it in those digits.
    Raises UserError where qwix is not installed.
    """
    try:
        import qwix
    except ModuleNotFoundError:
        raise UserError(
            "config.model.quantize needs the package qwix: pip install -e '.[quantize]'"
        ) from None
    weights, activations, gradients = TYPES[kind]
    rule = qwix.QtRule(
        module_path=WHERE, weight_qtype=weights, act_qtype=activations, bwd_qtype=gradients
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]), methods=METHODS)
