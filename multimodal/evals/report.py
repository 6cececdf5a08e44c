"""What a run leaves for people: tables of its evaluation on the terminal, and pictures."""

import pathlib

from multimodal.evals.grids import by_first, sections
from multimodal.evals.run import overridden
from multimodal.evals.table import table
from multimodal.nn.model import Net


def report(workdir, step="latest", overrides=(), metrics=None):
    """Print tables of metrics and draw pictures/: robustness, retrieval sheets and loss curves.

    Args:
      metrics: what to print; None: all that eval/STEP.json has.
    Returns: paths of the pictures. Raises UserError where there is no checkpoint.
    """
    import jax

    from multimodal.api import load
    from multimodal.training.checkpoint import read_scores
    from multimodal.training.plots import loss_curves

    if jax.process_index():
        return []
    workdir = pathlib.Path(workdir)
    loaded = load(workdir, step)
    metrics, paths = read_scores(workdir, loaded.step) if metrics is None else metrics, []
    if metrics:
        print(f"\n{table(metrics)}\n")
        paths += robustness_pictures(metrics, workdir / "pictures", loaded.step)
    paths += retrieval_sheets(loaded, workdir / "pictures", overridden(loaded.config, overrides))
    if (workdir / "metrics.jsonl").is_file():
        paths.append(loss_curves(workdir))
    for path in paths:
        print(f"picture: {path}")
    return paths


def robustness_pictures(metrics, folder, step) -> list:
    """A picture of each split that the robustness evaluator measured."""
    from multimodal.evals.curves import draw_robustness

    return [
        draw_robustness(
            pathlib.Path(folder, f"robustness_{split.replace('/', '_')}.png"),
            by_first(found),
            title=f"{split}, step {step}",
        )
        for split, found in sections(metrics, "robustness").items()
    ]


def retrieval_sheets(loaded, folder, config) -> list:
    """A sheet for each split with texts and images; [] where config.eval.pictures is 0."""
    from multimodal.evals.data import load_eval_data
    from multimodal.evals.pictures import draw_retrieval

    c = config
    wanted = c.eval.pictures and c.data.eval_splits
    if not wanted or not {"text", "image"} <= set(c.modalities):
        return []
    teacher = c.eval.use_ema and loaded.ema is not None
    net = Net(loaded.net.model, loaded.ema) if teacher else loaded.net
    return [
        draw_retrieval(
            net,
            data,
            pathlib.Path(folder, f"retrieval_{data.name.replace('/', '_')}.png"),
            c.eval.pictures,
            batch_size=c.eval.batch_size,
            title=f"{data.name}, step {loaded.step}",
        )
        for data in load_eval_data(c, loaded.tokenizer)
    ]
