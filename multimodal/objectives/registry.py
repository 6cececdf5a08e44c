"""Names of objectives, and the list of them that a config asks for."""

import dataclasses
import inspect
from collections.abc import Callable

from multimodal.errors import UserError
from multimodal.registry import check_names, lookup
from multimodal.schedules import Schedule, value_at

OBJECTIVES: dict[str, Callable] = {}


def register(name, needs=(), player="main", partial=False):
    """Decorator: make an objective known to configs as `fn = name`.

    Args:
      needs: heads that it uses ('classifiers' and 'joint': that the model has some, and one).
      player: 'critic' where it trains a critic, whose parameters no other objective may move, and
        which may move no others.
      partial: whether an example that lacks one modality still counts by its others.
    """

    def add(fn):
        fn.needs, fn.player, fn.partial = needs, player, partial
        OBJECTIVES[name] = fn
        return fn

    return add


@dataclasses.dataclass(frozen=True)
class Objective:
    """One term of the total: weight * fn(net, out, batch, rng, **kwargs).

    The weight and any keyword may be a schedule; its value is taken at the current step.
    """

    name: str
    fn: Callable
    weight: float | Schedule
    kwargs: dict

    def __call__(self, net, out, batch, rng, step):
        """Returns the unweighted loss, its weight at this step and the metrics."""
        kwargs = {k: value_at(v, step) for k, v in self.kwargs.items()}
        loss, metrics = self.fn(net, out, batch, rng, **kwargs)
        return loss, value_at(self.weight, step), metrics


def build(config, known_values=None) -> list[Objective]:
    """The objectives of `config.objectives`, in order.

    `known_values` ({keyword: value}: the mode, ids of the tokenizer) go to those functions that
    take them and whose config does not set them. Where a function compares two modalities, `a` and
    `b`, the config sets neither, and it has exactly two, they are these.

    Raises UserError for an unknown function or keyword.
    """
    objectives = []
    for name, spec in config.objectives.items():
        at, takes = f"config.objectives.{name}", ("net", "out", "batch", "rng")
        if not hasattr(spec, "keys"):
            raise UserError(f"{at} is {spec!r}: give a dict of its keys, such as {{'weight': 1.0}}")
        spec = dict(spec)
        fn = lookup(OBJECTIVES, spec.pop("fn", name), f"{at}.fn", takes)
        weight = spec.pop("weight", 1.0)
        known = list(inspect.signature(fn).parameters)[4:]
        check_names(at, spec, ["weight", "fn", *known], f"the objective {fn.__name__!r}")
        spec = {k: v for k, v in (known_values or {}).items() if k in known} | spec
        spec = _pair(fn, spec, config.modalities) | spec
        total = config.steps
        kwargs = {k: Schedule.parse(v, total, f"{at}.{k}") for k, v in spec.items()}
        weight = Schedule.parse(weight, total, f"{at}.weight")
        objectives.append(Objective(name, fn, weight, kwargs))
    if not objectives:
        raise UserError("config.objectives is empty: name at least one objective")
    return objectives


def _pair(fn, spec, modalities):
    """The a and b of a function where there is no choice: text last, otherwise by name."""
    defaults = {
        k: p.default for k, p in inspect.signature(fn).parameters.items() if k in ("a", "b")
    }
    names = len(defaults) == 2 and all(isinstance(d, str) for d in defaults.values())
    if not names or len(modalities) != 2 or defaults.keys() & spec:
        return {}
    # A config that was saved and read again has its keys in another order.
    order = sorted(modalities, key=lambda m: (modalities[m].get("transform") == "text", m))
    return {} if set(order) == set(defaults.values()) else dict(zip("ab", order))
