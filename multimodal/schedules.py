"""Schedules: values that change with the step. Learning rates, objective weights, mixing
coefficients.
"""

import dataclasses
import inspect

import jax
import jax.numpy as jnp

from multimodal.errors import UserError
from multimodal.registry import check_names, nearest

KINDS = {}


def kind(name):
    """Decorator: make `fn(step, total, **kwargs)` known to configs as `schedule = name`."""

    def add(fn):
        KINDS[name] = fn
        return fn

    return add


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A function of the step, built from a config like `{"schedule": "cosine", "peak": 1e-3,
    "warmup": 100}`.
    """

    name: str
    total: int
    kwargs: dict

    def __call__(self, step):
        return KINDS[self.name](step, self.total, **self.kwargs)

    @staticmethod
    def parse(value, total: int, where: str = "schedule"):
        """The Schedule that a dict with the key `schedule` describes; any other value as it is.

        Raises UserError that names `where` it stands for an unknown name or key, or a missing one.
        """
        if not (hasattr(value, "keys") and "schedule" in value):
            return value
        kwargs = dict(value)
        name = kwargs.pop("schedule")
        if name not in KINDS:
            raise UserError(
                f"{where}.schedule: unknown schedule {name!r}{nearest(name, KINDS)}; "
                f"known: {', '.join(sorted(KINDS))}"
            )
        takes = list(inspect.signature(KINDS[name]).parameters.values())[2:]
        check_names(where, kwargs, [p.name for p in takes], f"the schedule {name!r}")
        missing = [p.name for p in takes if p.default is p.empty and p.name not in kwargs]
        if missing:
            raise UserError(f"{where}: the schedule {name!r} needs {', '.join(missing)}")
        schedule = Schedule(name, total, kwargs)
        try:
            jax.eval_shape(schedule, 0)
        except TypeError as e:
            raise UserError(f"{where}: the schedule {name!r}: {e}") from None
        return schedule


def value_at(value, step):
    """A schedule's value at a step; any other value as it is."""
    return value(step) if isinstance(value, Schedule) else value


@kind("constant")
def constant(step, total, value, warmup=0):
    """value, after a linear warm-up over `warmup` steps."""
    return value * _warmup(step, warmup)


@kind("ramp")
def ramp(step, total, end, steps, start=0.0):
    """Linear from start at step 0 to end at step `steps` (up to 1: a share of the run), then end.

    ALBEF's alpha goes to 0.4 over one epoch.
    """
    steps = steps if steps > 1 else steps * total
    return start + (end - start) * jnp.minimum(1.0, step / jnp.maximum(steps, 1e-9))


@kind("cosine")
def cosine(step, total, peak, warmup=0, end=0.0):
    """open_clip's: peak * (step + 1) / warmup, then half a cosine from peak to end over the
    remaining steps.
    """
    left = (total - step) / max(1, total - warmup)
    # sin^2 rather than (1 + cos) / 2, which cancels near the end in float32.
    decay = end + (peak - end) * jnp.sin(jnp.pi / 2 * jnp.clip(left, 0, 1)) ** 2
    return jnp.where(step < warmup, peak * _warmup(step, warmup), decay)


@kind("rsqrt")
def rsqrt(step, total, peak, warmup=10_000, cooldown=0):
    """peak * sqrt(warmup / step) after a linear warm-up, and linearly to 0 over the last `cooldown`
    steps (SigLIP).
    """
    value = (
        peak * _warmup(step, warmup) * jnp.sqrt(max(1, warmup) / jnp.maximum(step, max(1, warmup)))
    )
    return value * jnp.clip((total - step) / cooldown, 0, 1) if cooldown else value


@kind("albef")
def albef(
    step, total, peak, start, end, steps_per_epoch, epochs, warmup_steps=20, warmup_every=100
):
    """The original ALBEF's: in epoch 0 a staircase warm-up, from epoch 1 on a cosine by epoch.

    The rate used at iteration i > 0 of epoch 0 was set after iteration i - 1, and changes only
    after iterations that `warmup_every` divides (salesforce/ALBEF Pretrain.py:78,155;
    scheduler/cosine_lr.py).
    """
    epoch, i = step // steps_per_epoch, step % steps_per_epoch
    stair = jnp.minimum(jnp.maximum(i - 1, 0) // warmup_every, warmup_steps)
    warm = start + (peak - start) * stair / warmup_steps
    decayed = end + 0.5 * (peak - end) * (1 + jnp.cos(jnp.pi * epoch / epochs))
    return jnp.where(epoch == 0, warm, decayed)


def _warmup(step, warmup):
    return jnp.minimum(1.0, (step + 1) / warmup) if warmup else 1.0
