"""Names of evaluators. A new one is a function with a decorator."""

from collections.abc import Callable

from multimodal.registry import lookup

EVALUATORS: dict[str, Callable] = {}

# Modules whose import registers our evaluators; a fork's are named as `package.module:function`.
MODULES = tuple(
    f"multimodal.evals.{name}"
    for name in ("retrieval", "zeroshot", "classification", "robustness", "gap", "probe", "cca")
)


def register(name):
    """Decorator: make an evaluator known to configs, in `config.eval.names`.

    An evaluator is `fn(net, data, cfg, mesh=None) -> {name: number}`: `data` is the EvalData of one
    split, `cfg` the config's `eval` part. Start the names of its metrics with `data.name`.
    """

    def add(fn):
        EVALUATORS[name] = fn
        return fn

    return add


def evaluator(name) -> Callable:
    """The evaluator of that name. Raises UserError with the nearest known one."""
    import importlib

    for module in MODULES:
        importlib.import_module(module)
    return lookup(EVALUATORS, name, "config.eval.names", takes=("net", "data", "cfg"))
