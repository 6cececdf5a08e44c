"""ALBEF on several processes, each with its own negatives and averages: config.local_groups."""

import jax
import numpy as np

from multimodal.objectives import Objective
from multimodal.objectives.queue import to_ring
from multimodal.training.optim import make_optimizer
from multimodal.training.step import make_loss, make_step
from tests.parity import albef
from tests.parity.common import load, precision
from tests.parity.report import compare_gradients

KEYS = ("image", "input_ids", "neg_image_idx", "neg_text_idx", "mlm_input_ids", "mlm_labels")
ALPHA = 0.4  # of the recorded run; the folder does not say


def by_example(objective) -> Objective:
    """The same objective, its recorded draws picked for the examples that it is called with."""

    def fn(net, out, batch, rng, **kwargs):
        drawn = {k: kwargs[k] for k in ("negatives", "masked") if k in kwargs}
        mine = jax.tree.map(lambda v: v[batch["index"]], drawn)
        return objective.fn(net, out, batch, rng, **(kwargs | mine))

    return Objective(objective.name, fn, objective.weight, objective.kwargs)


def check_two_processes(folder, report):
    """Mean losses and gradients over the processes, and the queue after the step."""
    ranks = sorted(folder.glob("rank*.npz"))
    sizes = folder.parent / "albef_f32"  # numbers of heads, which weights do not record
    if not ranks or not (folder / "weights_init.npz").is_file() or not sizes.is_dir():
        return
    records = [report.load(path) for path in ranks]
    dtype = records[0]["image"].dtype
    z = {k: np.concatenate([r[k] for r in records]) for k in KEYS}
    z |= {"attention_mask": np.ones_like(z["input_ids"]), "alpha": ALPHA}
    with precision(dtype):
        golden = albef.golden_config(sizes)
        heads = {"image": golden["vit"]["heads"], "text": golden["bert"]["num_attention_heads"]}
        weights = report.load(folder / "weights_init.npz")
        loaded = load(weights, dtype, format="albef", heads=heads, config=golden["bert"])
        config = albef.train_config(loaded, golden)
        config.local_groups, config.batch_size = len(ranks), len(z["image"])
        tx = make_optimizer(config, loaded.params)
        batch, draws = albef.recorded(z, dtype)
        terms = [by_example(o) for o in albef.objectives(draws)]
        state = albef.first_state(loaded, tx, config.batch_size)
        new, metrics = jax.jit(make_step(config, loaded.model, terms, tx))(state, batch)
        gradient = jax.grad(make_loss(config, loaded.model, terms), has_aux=True)
        grads, _ = jax.jit(gradient)(state.params, state.replace(ema=new.ema), batch)
        for name, theirs in albef.OBJECTIVE_NAMES.items():
            mean = np.mean([r[f"loss_{theirs}"] for r in records])
            report.compare(f"mean loss_{theirs}", metrics[f"{name}/loss"], mean, dtype)
        ring = to_ring(new.queue, config.batch_size)
        queue = {"image": ring["image"].T, "ptr": ring["ptr"][None]}
        wanted = {"image": records[0]["image_queue_after"], "ptr": records[0]["queue_ptr_after"]}
        report.compare("queue", queue, wanted, dtype)
        theirs = loaded.gradients(report.load(folder / "ddp_mean_grads.npz"))
        compare_gradients(report, "mean gradients", grads, theirs, dtype)
