"""ALBEF pre-training: losses, gradients, and the state after optimizer steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from multimodal.interop import import_weights
from multimodal.interop.weights import make_table
from multimodal.nn.model import Net, unit
from multimodal.objectives import OBJECTIVES, Objective
from multimodal.training.optim import RULES, factors, make_optimizer
from multimodal.training.step import State, make_loss, make_step
from tests.parity.common import Loaded, load, make_batch, precision
from tests.parity.report import compare_gradients, split_key_biases

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.02  # of the recorded runs; the folder does not say
OBJECTIVE_NAMES = {"contrastive": "ita", "itm": "itm", "mlm": "mlm"}


def golden_config(folder) -> dict:
    """config.json with 'config', 'bert', 'vit', 'ids'."""
    return json.loads((folder / "config.json").read_text())


def load_albef(folder, weights, dtype) -> Loaded:
    """ALBEF with the folder's sizes and weights."""
    golden = golden_config(folder)
    heads = {"image": golden["vit"]["heads"], "text": golden["bert"]["num_attention_heads"]}
    return load(folder / weights, dtype, heads=heads, config=golden["bert"])


def train_config(loaded, golden) -> ConfigDict:
    """What the training step reads of a config, as the original trains."""
    model = loaded.config["model"]
    fusion = {"dropout": 0.0, "attention_dropout": 0.0} | model["fusion"]
    return ConfigDict({
        "seed": 0, "mode": "albef_original", "micro_batches": 1, "steps": 100,
        "modalities": loaded.config["modalities"], "model": model | {"fusion": fusion},
        "queue": {"size": len(loaded.source.queue["id"]), "modalities": ("image", "text")},
        "ema": {"decay": golden["config"]["momentum"]},
        "optim": {
            "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip": 0.0,
            "rules": (),
        },
    })


def first_state(loaded, tx) -> State:
    """The state of step 0: weights, teacher and queue of the file."""
    ema, queue = (jax.tree.map(jnp.asarray, t) for t in (loaded.source.ema, loaded.source.queue))
    return State(jnp.zeros((), jnp.int32), loaded.params, ema, tx.init(loaded.params), queue)


def objectives(draws) -> list[Objective]:
    """The three objectives of the original with the recorded draws."""
    own = {
        "contrastive": {"momentum": True, "alpha": draws["alpha"]},
        "itm": {"negatives": draws["negatives"]},
        "mlm": {"momentum": True, "alpha": draws["alpha"], "masked": draws["masked"]},
    }
    return [Objective(n, OBJECTIVES[n], 1.0, k | {"mode": "albef_original"}) for n, k in own.items()]


def recorded(z, dtype):
    """(batch, draws) of a step."""
    batch = make_batch(z["image"], z["input_ids"], z["attention_mask"])
    draws = {
        "alpha": jnp.asarray(z["alpha"], dtype),
        "negatives": (jnp.asarray(z["neg_image_idx"]), jnp.asarray(z["neg_text_idx"])),
        "masked": (jnp.asarray(z["mlm_input_ids"], jnp.int32), jnp.asarray(z["mlm_labels"], jnp.int32)),
    }
    return batch, draws


def outputs(model, params, ema, batch, draws):
    """Towers' and heads' outputs under the original's names; projections normalised."""

    def run(params):
        net = Net(model, params)
        out = net.encode(batch)
        masked = net.encode(batch | {"text": draws["masked"][0]})
        return net, out, net.mlm(net.fuse(masked["text"].tokens, out["image"].tokens))

    net, out, logits = run(params)
    _, out_m, logits_m = run(ema)
    image, text = out["image"].tokens, out["text"].tokens
    neg_image, neg_text = draws["negatives"]

    def pick(tokens, i):
        return jax.tree.map(lambda v: v[i], tokens)

    pairs = [(text, image), (text, pick(image, neg_image)), (pick(text, neg_text), image)]
    return {
        "image_embeds": image.x, "vision_proj": out["image"].embed, "text_proj": out["text"].embed,
        "vision_proj_m": out_m["image"].embed, "text_proj_m": out_m["text"].embed,
        "itm_logits": jnp.concatenate([net.match(net.fuse(q, c)) for q, c in pairs]),
        "mlm_logits": logits, "mlm_logits_m": logits_m,
    }


def check_pretraining(folder, report):
    """Every recorded step, gradients of the first, and the final state."""
    if not (folder / "pretrain_steps.npz").is_file():
        return
    z = report.load(folder / "pretrain_steps.npz")
    steps = sorted({int(k.split(".")[0]) for k in z})
    dtype = z[f"{steps[0]}.image"].dtype
    with precision(dtype):
        loaded = load_albef(folder, "pretrain_weights_init.safetensors", dtype)
        config = train_config(loaded, golden_config(folder))
        tx = make_optimizer(config, loaded.params)
        state = first_state(loaded, tx)

        @jax.jit
        def step(state, batch, draws):
            new, metrics = make_step(config, loaded.model, objectives(draws), tx)(state, batch)
            return new, metrics, outputs(loaded.model, state.params, new.ema, batch, draws)

        for s in steps:
            record = {k.split(".", 1)[1]: v for k, v in z.items() if k.startswith(f"{s}.")}
            batch, draws = recorded(record, dtype)
            new, metrics, ours = step(state, batch, draws)
            check_step(s, record, new, metrics, ours, dtype, report)
            if s == steps[0]:
                check_gradients(folder, loaded, config, state.replace(ema=new.ema), batch, draws, dtype, report)
            state = new
        check_final(folder, loaded, state, len(steps), dtype, report)


def check_step(s, record, new, metrics, ours, dtype, report):
    """Losses, outputs and queue of one step."""
    for name, theirs in OBJECTIVE_NAMES.items():
        report.compare(f"step {s} loss_{theirs}", metrics[f"{name}/loss"], record[f"loss_{theirs}"], dtype)
    shown = {k: v for k, v in ours.items() if k in record}
    wanted = {k: np.asarray(unit(jnp.asarray(record[k]))) if "proj" in k else record[k] for k in shown}
    report.compare(f"step {s} outputs", shown, wanted, dtype)
    queue = {m: new.queue[m].T for m in ("image", "text")} | {"ptr": new.queue["ptr"][None]}
    names = {"image": "image_queue_after", "text": "text_queue_after", "ptr": "queue_ptr_after"}
    report.compare(f"step {s} queue", queue, {m: record[n] for m, n in names.items()}, dtype)


def check_gradients(folder, loaded, config, state, batch, draws, dtype, report):
    """All gradients of the first step."""
    path = folder / "pretrain_grads_step0.npz"
    if not path.is_file():
        return
    loss = make_loss(config, loaded.model, objectives(draws))
    ours, _ = jax.jit(jax.grad(loss, has_aux=True))(state.params, state, batch)
    compare_gradients(report, "step 0 gradients", ours, loaded.gradients(report.load(path)), dtype)


def check_final(folder, loaded, state, steps, dtype, report):
    """Weights, teacher, temperature and queue after the last step."""
    path = folder / "pretrain_weights_final.safetensors"
    if not path.is_file():
        return
    acts = {m: c["act"] for m, c in loaded.config["modalities"].items()}
    final = import_weights(path, cfg=loaded.config, act=acts)
    heads = ("match_head", "temperature")  # which the original's teacher does not have
    for name, ours, theirs in (
        ("weights", state.params, final.params),
        ("EMA", {k: v for k, v in state.ema.items() if k not in heads},
         {k: v for k, v in final.ema.items() if k not in heads}),
    ):
        note = ""
        if np.dtype(dtype) == np.float32:
            # Adam divides their rounding noise by its own size.
            ours, theirs = split_key_biases(ours)[0], split_key_biases(theirs)[0]
            note = "without key biases"
        report.compare(f"{name} after {steps} steps", ours, theirs, dtype, note)
    report.compare("temperature at the end", state.params["temperature"], final.params["temperature"], dtype)
    queue = {m: state.queue[m] for m in ("image", "text", "ptr")}
    report.compare("queue at the end", queue, {m: final.queue[m] for m in queue}, dtype)


def check_groups(folder, report):
    """Our weight decay of every parameter against the original's groups."""
    path = folder / "pretrain_param_groups.json"
    if not path.is_file() or not (folder / "pretrain_weights_init.safetensors").is_file():
        return
    loaded = load_albef(folder, "pretrain_weights_init.safetensors", np.float32)
    from flax.traverse_util import flatten_dict

    decays = flatten_dict(factors(loaded.params, RULES["albef_original"])[1], sep="/")
    table = make_table("albef", loaded.config, "text_encoder.bert.")
    ours = {e.theirs: [decays[p.removeprefix("params/")] for p in e.ours] for e in table.entries if e.part == "params"}
    groups = json.loads(path.read_text())
    theirs = {n: g["weight_decay"] for g in groups for n in g["names"]}
    full = max(theirs.values())
    wrong = [n for n, d in theirs.items() if {x * full for x in ours.get(n, [None])} != {d}]
    wrong += sorted(set(ours) - set(theirs))
    note = f"{len(theirs)} parameters" + (f", wrong: {', '.join(wrong[:4])}" if wrong else "")
    report.add("weight decay by parameter", len(wrong), np.float64, note)
