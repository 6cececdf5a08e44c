"""From a config to what a run reads: source, tokenizer, pipeline."""

import json
import logging
import pathlib

import jax
import numpy as np

from multimodal.data import fast_image
from multimodal.data.augment import Augment
from multimodal.data.class_names import class_names
from multimodal.data.pipeline import Pipeline
from multimodal.data.sources import build_source, texts_of
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.data.transforms import build_transforms
from multimodal.errors import UserError
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
