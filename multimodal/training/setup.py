"""From a config to the pieces of a run: data, tokenizer, model, state."""

import functools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from multimodal import objectives
from multimodal.data import fast_image
from multimodal.data.augment import Augment
from multimodal.data.class_names import class_names
from multimodal.data.pipeline import Pipeline
from multimodal.data.sources import build_source, texts_of
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.data.transforms import build_transforms
from multimodal.errors import UserError
from multimodal.nn.attention import PLATFORMS
from multimodal.nn.model import build_model
from multimodal.training.optim import make_optimizer
from multimodal.training.sharding import batch_sharding, state_shardings
from multimodal.training.step import new_state, seed_key
from multimodal.training.transfer import tokenizer_of

log = logging.getLogger(__name__)


def settle(config, stored=None):
    """Put what this machine has in place of every 'auto', in place, so that it is on record.

    stored: the config of the run that goes on, whose choices stay: values then are the same, or
    the extra is missing and building the transforms says so.
    """
    for m, c in config.modalities.items():
        if c.get("decode") == "auto":
            here = fast_image.choose("auto")
            if jax.process_count() > 1:  # one choice for all hosts, whatever each has installed
                here = fast_image.DECODERS[int(_of_first(fast_image.DECODERS.index(here)))]
            before = stored.modalities.get(m, {}) if stored else {}
            c.decode = before.get("decode", here)


def _of_first(value):
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return broadcast_one_to_all(np.asarray(value))


def get_source(config, split):
    """The data source of a config, at a split."""
    return build_source(config.data.source, split, config.data.kwargs.to_dict())


def get_tokenizer(config, workdir, source):
    """The workdir's tokenizer; without a workdir one from config.tokenizer.path, else that of the
    run that config.init.path names, else a trained one.

    Raises UserError where it has more tokens than a text tower embeds.
    """
    texts = [m for m, c in config.modalities.items() if c.transform == "text"]
    if not texts:
        return None
    if workdir is not None:
        tokenizer = Tokenizer.load(pathlib.Path(workdir, "tokenizer.json"))
    elif path := config.tokenizer.path or tokenizer_of(config.init.path):
        log.info("tokenizer: %s", path)
        tokenizer = Tokenizer.load(path, config.tokenizer)
    else:
        tokenizer = of_first(train_tokenizer(texts_of(source, texts[0]), config.tokenizer))
    for m in texts:
        room = config.modalities[m].vocab_size
        if tokenizer.vocab_size > room:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, "
                f"config.modalities.{m}.vocab_size is {room}: "
                "make them agree, or use the tokenizer that the model was trained with"
            )
        check_end(m, config.modalities[m], tokenizer)
    return tokenizer


def check_end(name, tower, tokenizer):
    """Raise UserError where a tower pools at a token that no caption of the tokenizer ends with."""
    if tower.get("pool") != "eot":
        return
    end = tower.eot_id if tower.eot_id >= 0 else tokenizer.vocab_size - 1
    if end != tokenizer.sep or not tokenizer.add_sep:
        raise UserError(
            f"config.modalities.{name}.pool 'eot' looks for token {end}, and captions end with "
            + (
                f"{tokenizer.sep}: set eot_id to it"
                if tokenizer.add_sep
                else "none: set config.tokenizer.add_sep"
            )
        )


def of_first(tokenizer):
    """The tokenizer of process 0: where ties decide, each process may have trained another."""
    if jax.process_count() == 1:
        return tokenizer
    mine = np.frombuffer(json.dumps(tokenizer.__getstate__()).encode(), np.uint8)
    found = np.zeros(int(_of_first(mine.size)), np.uint8)
    found[: mine.size] = mine[: found.size]
    copy = Tokenizer.__new__(Tokenizer)
    copy.__setstate__(json.loads(_of_first(found).tobytes()))
    return copy


def get_pipeline(config, source, tokenizer):
    """The training pipeline: batch = f(seed, step), this process's slice."""
    return Pipeline(
        source,
        build_transforms(config.modalities, train=True, tokenizer=tokenizer),
        config.batch_size,
        config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=config.data.threads,
        workers=config.data.workers,
        max_bad_share=config.data.max_bad_share,
        classes={c.target: c.classes for c in config.model.classifiers.values()},
        augment=get_augment(config, source),
    )


def get_augment(config, source):
    """What changes whole examples in training, or None."""
    if not config.data.augment:
        return None
    return Augment(config.data.augment, config.modalities, class_names(source))


def get_objectives(config, tokenizer):
    """The config's objectives; what they need to know of the tokenizer is filled in."""
    known = {"mode": config.mode}
    if tokenizer is not None and tokenizer.mask is None and "mlm" in config.model.heads:
        raise UserError("config.model.heads 'mlm' needs a mask token, which CLIP's tokenizer lacks")
    if tokenizer is not None:
        known |= {"mask_id": tokenizer.mask, "keep_ids": (tokenizer.pad, tokenizer.cls)}
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
