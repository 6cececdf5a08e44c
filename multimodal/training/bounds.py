"""Numbers of a config that lie outside what they can mean, told before anything is built."""

import logging
import re

from multimodal.config import flatten
from multimodal.errors import UserError
from multimodal.schedules import Schedule
from multimodal.training.optim import learning_rate

log = logging.getLogger(__name__)

_TOWER = r"modalities\.[^.]+\."
_STACK = rf"({_TOWER}|model\.fusion\.)"
_OBJECTIVE = r"objectives\.[^.]+\."

# What to give -> (whether a number is that, regexes of the keys). A schedule's values are bounded
# as the key that it stands for.
BOUNDS = {
    "1 or more": (
        lambda x: x >= 1,
        (
            r"steps|micro_batches|log_every|save_every|keep|eval\.batch_size",
            r"eval\.train_examples|data\.threads|mesh\.heartbeat|tokenizer\.vocab_size",
            r"model\.(embed_dim|critic\.hidden)",
            rf"{_TOWER}(vocab_size|max_length|frames|channels|tubelet|mels|window|hop|fft)",
            rf"{_TOWER}(sample_rate|max_pixels|max_frames)",
        ),
    ),
    "1 or more, and below 2^31": (lambda x: 1 <= x < 2**31, (r"batch_size",)),
    "0 or more": (
        lambda x: x >= 0,
        (
            r"seed|eval_every|keep_best|hang_seconds|check_replicas_every|skip\.(most|spike)",
            r"queue\.size|data\.workers|eval\.(rerank|pictures)",
            r"optim\.(critic\.)?(lr|weight_decay)|optim\.(clip|eps|critic\.steps)",
            r"model\.(critic\.layers|fusion\.bottleneck)",
            rf"{_STACK}(eps|init_std|layer_scale)",
            rf"{_TOWER}(temporal_depth|positions|type_embed|fmin|fmax)",
            rf"{_OBJECTIVE}(block|max_predictions|ridge)",
        ),
    ),
    "0 or more and below 1": (
        lambda x: 0 <= x < 1,
        (r"ema\.decay|optim\.(critic\.)?b[12]", rf"{_STACK}(attention_)?dropout"),
    ),
    "a share from 0 to 1": (
        lambda x: 0 <= x <= 1,
        (
            r"modality_dropout|data\.max_bad_share|eval\.noise_levels",
            rf"{_TOWER}(noise|scale)",
            rf"{_OBJECTIVE}(smoothing|alpha|rate)",
        ),
    ),
    "more than 0": (lambda x: x > 0, (rf"{_TOWER}(seconds|max_seconds)",)),
}
# Of a schedule: its values; the others count steps, and by some of them it divides.
VALUES = ("value", "peak", "start", "end")
DIVISORS = ("steps_per_epoch", "epochs", "warmup_steps", "warmup_every")


def check_bounds(config):
    """Raise UserError for the first number that is out of bounds; warn of a warm-up without end."""
    flat = flatten(config)
    foreign = _foreign(config)
    for key, value in flat.items():
        if key.startswith(foreign):
            continue
        wanted = _wanted(key, flat)
        for x in value if isinstance(value, tuple | list) else (value,):
            number = isinstance(x, int | float) and not isinstance(x, bool)
            if wanted and number and not BOUNDS[wanted][0](x):
                raise UserError(f"config.{key} is {value}: give {wanted}")
    Schedule.parse(config.modality_dropout, config.steps, "config.modality_dropout")
    _warn_of_warmup(config, learning_rate(config))


def _foreign(config):
    """Prefixes of the keys of what has an import path: its arguments mean what it says."""
    named = [
        (f"modalities.{m}.", f"{c.encoder} {c.transform}") for m, c in config.modalities.items()
    ]
    named += [
        (f"objectives.{o}.", c.get("fn", o))
        for o, c in config.objectives.items()
        if hasattr(c, "keys")
    ]
    return tuple(prefix for prefix, name in named if ":" in str(name))


def _wanted(key, flat):
    """What a number at a key must be, a key of BOUNDS; '' where anything goes."""
    parent, _, last = key.rpartition(".")
    if f"{parent}.schedule" in flat:
        if last not in VALUES:
            return "1 or more" if last in DIVISORS else "0 or more"
        key = parent
    for wanted, (_, patterns) in BOUNDS.items():
        if re.fullmatch("|".join(patterns), key):
            return wanted
    return ""


def _warn_of_warmup(config, rate):
    lr, steps = config.optim.lr, config.steps
    warmup = lr.get("warmup", 0) if hasattr(lr, "keys") else 0
    if warmup >= steps >= 10:  # fewer, as of the smoke variants, are a trial of the machinery
        log.warning(
            "config.optim.lr.warmup is %s and config.steps %s: the learning rate only rises, to "
            "%.3g at the last step; give a shorter warm-up",
            *(warmup, steps, float(rate(steps - 1))),
        )
