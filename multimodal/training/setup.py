"""From a config to a model and the state of its training.

Imports no package that reads data (inputs.py does): a step needs JAX, Flax, Optax and
ml_collections alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from multimodal import objectives
from multimodal.data.corrupt import special_ids
from multimodal.data.transforms import build_transforms
from multimodal.errors import UserError
from multimodal.nn.attention import PLATFORMS
from multimodal.nn.model import build_model
from multimodal.training.optim import make_optimizer
from multimodal.training.sharding import batch_sharding, state_shardings
from multimodal.training.step import new_state, seed_key


def get_objectives(config, tokenizer):
    """The config's objectives; what they need to know of the tokenizer is filled in."""
    known = {"mode": config.mode}
    if tokenizer is not None and tokenizer.mask is None and "mlm" in config.model.heads:
        raise UserError("config.model.heads 'mlm' needs a mask token, which CLIP's tokenizer lacks")
    if tokenizer is not None:
        known |= {"mask_id": tokenizer.mask, "keep_ids": (tokenizer.pad, tokenizer.cls)}
        special = special_ids(tokenizer).values()
        known["special_ids"] = tuple(i for i in special if i is not None)
        known["vocab_size"] = tokenizer.vocab_size
    return objectives.build(config, known)


def example_batch(config, size=2):
    """A batch of missing examples: the shapes and types that the transforms give."""
    shapes_only = object()  # stands for the tokenizer: an empty caption needs none
    transforms = build_transforms(config.modalities, train=False, tokenizer=shapes_only)
    return {m: np.stack([t.empty()] * size) for m, t in transforms.items()}


def init_params(config, model, rng=None):
    """Random parameters of the model, a function of the seed alone; rng: its key data."""
    key = jax.random.wrap_key_data(seed_key(config) if rng is None else rng)
    params = model.init(key, example_batch(config))["params"]
    return jax.tree.map(jnp.asarray, params)


def build_state(config, mesh, import_weights=True):
    """Model, optimizer and the state of step 0, every array made where it is to lie.

    import_weights: False leaves config.init alone; a resumed run has its own.
    """
    model, tx, shapes, init, start = _prepare(config, mesh)
    rng = seed_key(config)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    if config.init.path and import_weights:
        params = jax.jit(init, out_shardings=shardings.params)(rng)
        make, args = start, (initialised(params, config),)
    else:
        make, args = lambda rng: start(init(rng), rng=rng), (rng,)
    return model, tx, jax.jit(make, out_shardings=shardings)(*args)


def state_shapes(config, mesh):
    """Model, optimizer, and the shapes and shardings of the state; no array is made."""
    return _prepare(config, mesh)[:3]


def _prepare(config, mesh):
    """Model, optimizer, shapes of the state, init(rng) -> params, start(params, rng) -> State."""
    check_kernel(config.model.attention_kernel, mesh)
    model, rng = build_model(config), seed_key(config)
    init = jax.jit(functools.partial(init_params, config, model))  # traced once for all that follow
    tx = make_optimizer(config, jax.eval_shape(init, rng))
    start = functools.partial(new_state, config, tx=tx)
    shapes = jax.eval_shape(lambda rng: start(init(rng), rng=rng), rng)
    shapes = laid_out(shapes, state_shardings(shapes, mesh, config.mesh.rules))
    return model, tx, shapes, init, start


def check_kernel(kernel, mesh):
    """Raise UserError where the devices cannot run the attention kernel that the config names."""
    wanted = PLATFORMS.get(kernel)
    if not wanted or isinstance(mesh, jax.sharding.AbstractMesh):  # the latter: a plan by formula
        return
    there = mesh.devices.flat[0].platform
    if there != wanted:
        raise UserError(
            f"config.model.attention_kernel {kernel!r} runs on a {wanted}, here is a {there}: "
            "leave it 'auto'"
        )


def laid_out(shapes, shardings):
    """ShapeDtypeStructs of a pytree of shapes and one of shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def batch_shapes(config, mesh):
    """Shapes and shardings of a global training batch, without data: what a source gives that has
    every modality and every label of the config's classifiers.
    """
    b = config.batch_size
    rows = {m: (x.shape[1:], x.dtype) for m, x in example_batch(config, 1).items()}
    rows |= {"id": ((), np.int32), "index": ((), np.int32)}
    for c in config.model.classifiers.values():
        rows[c.target] = ((c.classes,), np.uint8) if c.multi else ((), np.int32)
    sharding = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((b, *s), d, sharding=sharding) for k, (s, d) in rows.items()}


def initialised(params, config):
    """The initial parameters with those of config.init.path, a run's or a file's, put in."""
    from multimodal.interop import initialise_from
    from multimodal.training.transfer import from_run, is_run, local_copy

    init = config.init.copy_and_resolve_references()
    with local_copy(init.path) as init.path:
        if is_run(init.path):
            return from_run(params, init)
        return initialise_from(params, init, config)
