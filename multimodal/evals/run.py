"""Run the evaluators that a config names, on a Net or on a workdir's checkpoint."""

import contextlib

from multimodal.errors import UserError
from multimodal.evals.data import load_eval_data
from multimodal.evals.registry import evaluator
from multimodal.nn.model import Net


def evaluate(config, model, params, tokenizer, mesh=None, names=None) -> dict[str, float]:
    """Metrics of a model with these parameters; see run_evals."""
    return run_evals(Net(model, params), config, tokenizer, names, mesh=mesh)


def run_evals(
    net, config, tokenizer, names=None, data_override=None, mesh=None
) -> dict[str, float]:
    """Metrics of a Net by the named evaluators on every evaluation split.

    Args:
      names: evaluators; default: config.eval.names.
      data_override: list of EvalData to take instead of the config's splits.
      mesh: devices to spread batches over.
    Raises: UserError for an unknown evaluator, or data that it cannot work with.
    """
    fns = [evaluator(name) for name in names or config.eval.names]
    data = load_eval_data(config, tokenizer) if data_override is None else data_override
    metrics = {}
    for split in data:
        for fn in fns:
            metrics |= fn(net, split, config.eval, mesh=mesh)
    return metrics


def evaluate_workdir(workdir, step="latest", evals="", overrides=()) -> dict[str, float]:
    """Evaluate a checkpoint and write eval/STEP.json; returns the metrics.

    Args:
      step: a number, 'latest' or 'best'; evals: evaluators, comma-separated, default the config's.
      overrides: 'key=value' changes of the config. On another data source the names of the metrics
        start with it, so that they do not pass for those of the run's own data.
    """
    import jax

    from multimodal.api import load
    from multimodal.training.loop import write_scores
    from multimodal.training.sharding import make_mesh

    loaded = load(workdir, step)
    config = overridden(loaded.config, overrides)
    data = load_eval_data(config, loaded.tokenizer)
    # Other data or other parameters must not pass for the run's own numbers.
    mine, theirs = (c.data.to_dict() for c in (loaded.config, config))
    other = config.data.source.rpartition(":")[2]
    for split in data:
        if any(mine[k] != theirs[k] for k in ("source", "kwargs")):
            split.name = f"{other}:{split.name}"
        if config.eval.use_ema != loaded.config.eval.use_ema:
            split.name = f"{'ema' if config.eval.use_ema else 'student'}:{split.name}"
    mesh = make_mesh() if jax.device_count() > 1 else None
    names = [n.strip() for n in evals.split(",") if n.strip()] if isinstance(evals, str) else evals
    params = loaded.ema if config.eval.use_ema else loaded.params
    if params is None:
        raise UserError(
            f"{workdir}: config.eval.use_ema, but the run has no teacher (config.ema.decay = 0)"
        )
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        metrics = run_evals(
            Net(loaded.net.model, params), config, loaded.tokenizer, names, data, mesh
        )
    if jax.process_index() == 0:
        write_scores(workdir, loaded.step, metrics)
    return metrics


def overridden(config, overrides):
    """A copy of a config with 'key=value' changes; another source drops the old one's kwargs."""
    from ml_collections import ConfigDict

    from multimodal.config import apply_overrides

    changed = ConfigDict(config.to_dict())
    pairs = [o.partition("=")[::2] for o in overrides]
    if any(key == "data.source" and text != config.data.source for key, text in pairs):
        changed.data.kwargs = ConfigDict()
    return apply_overrides(changed, overrides)
