"""ALBEF's retrieval fine-tuning with positives by id, and re-ranking by the matching head."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from multimodal.nn.model import Net
from multimodal.objectives import OBJECTIVES
from tests.parity.albef import golden_config, load_albef
from tests.parity.common import make_batch, precision
from tests.parity.report import compare_gradients

WEIGHTS = "retrieval_weights_init.safetensors"
NOT_RANKED = -100.0


def make_losses(loaded, golden, z, batch):
    """params -> (total, (loss_ita, loss_itm)) of the first step, as model_retrieval.py computes
    them."""
    decay, alpha = golden["config"]["momentum"], golden["config"]["alpha"]
    ema = jax.tree.map(jnp.asarray, loaded.source.ema)
    ema = optax.incremental_update(loaded.params, ema, 1 - decay)
    queue = jax.tree.map(jnp.asarray, loaded.source.queue)
    negatives = tuple(jnp.asarray(z[f"neg_{m}_idx"]) for m in ("image", "text"))
    common = {"positives": "id", "mode": "albef_original"}

    def losses(params):
        net = Net(loaded.model, params, ema, queue)
        out = net.encode(batch)
        out["teacher"] = net.teacher.encode(batch)
        ita, _ = OBJECTIVES["contrastive"](
            net, out, batch, None, momentum=True, alpha=alpha, **common
        )
        itm, _ = OBJECTIVES["itm"](net, out, batch, None, negatives=negatives, **common)
        return ita + itm, (ita, itm)

    return losses


def check_retrieval(folder, report):
    """Losses and gradients of one step."""
    if not (folder / "retrieval.npz").is_file() or not (folder / WEIGHTS).is_file():
        return
    z = report.load(folder / "retrieval.npz")
    dtype = z["image"].dtype
    with precision(dtype):
        loaded = load_albef(folder, WEIGHTS, dtype)
        batch = make_batch(z["image"], z["input_ids"], z["attention_mask"], z["idx"])
        losses = make_losses(loaded, golden_config(folder), z, batch)
        (_, (ita, itm)), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(loaded.params)
        report.compare("retrieval loss_ita", ita, z["loss_ita"], dtype)
        report.compare("retrieval loss_itm", itm, z["loss_itm"], dtype)
        grads = {k.removeprefix("grad."): v for k, v in z.items() if k.startswith("grad.")}
        if grads:
            compare_gradients(
                report, "retrieval gradients", gradient, loaded.gradients(grads), dtype
            )


def check_rerank(folder, report):
    """Similarities, and the matching scores of each image's k nearest texts."""
    path = folder / "retrieval_rerank.npz"
    if not path.is_file() or not (folder / "retrieval.npz").is_file():
        return
    z, inputs = report.load(path), report.load(folder / "retrieval.npz")
    dtype = z["sims"].dtype
    with precision(dtype):
        net = load_albef(folder, WEIGHTS, dtype).net
        out = net.encode(make_batch(inputs["image"], inputs["input_ids"], inputs["attention_mask"]))
        sims = out["image"].embed @ out["text"].embed.T
        report.compare("rerank similarities", sims, z["sims"], dtype)
        for name, rows, ours in (("score_i2t", "image", sims), ("score_t2i", "text", sims.T)):
            if name in z:
                k = int((z[name] != NOT_RANKED).sum(1).max())
                scores = rerank(net, out, np.asarray(ours), k, rows)
                ranked = z[name] != NOT_RANKED
                same = np.array_equal(ranked, scores != NOT_RANKED)
                report.add(f"rerank {name}, which {k}", 0 if same else np.inf, dtype, f"k_test {k}")
                report.compare(f"rerank {name}, scores", scores[ranked], z[name][ranked], dtype)


def rerank(net, out, sims, k, rows):
    """[R, C] matching logits of each row's k most similar columns, NOT_RANKED elsewhere."""
    top = np.argsort(-sims, axis=1)[:, :k]
    scores = np.full(sims.shape, NOT_RANKED)
    for i, columns in enumerate(top):
        here = np.full(k, i)
        image, text = (here, columns) if rows == "image" else (columns, here)
        query, context = (
            jax.tree.map(lambda v, j=j: v[j], out[m].tokens)
            for m, j in (("text", text), ("image", image))
        )
        scores[i, columns] = net.match(net.fuse(query, context))[:, 1]
    return scores
