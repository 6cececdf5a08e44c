"""ALBEF pre-training: losses, gradients, and the state after optimizer steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs.common import base, image_tower, text_tower
from multimodal.interop import import_weights
from multimodal.interop.weights import make_table
from multimodal.nn.model import Net, unit
from multimodal.objectives import OBJECTIVES, Objective
from multimodal.objectives.queue import from_ring, to_ring
from multimodal.training.health import new_health
from multimodal.training.optim import RULES, factors, make_optimizer
from multimodal.training.step import State, make_loss, make_step, seed_key
from tests.parity.common import Loaded, acts, load, make_batch, precision
from tests.parity.report import compare_gradients, split_key_biases, within_adam

LEARNING_RATE, WEIGHT_DECAY, EPS = 1e-3, 0.02, 1e-8  # of the recorded runs; the folder does not say
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
    """The config of the recorded run: the original's mode and optimizer."""
    c, model = base(), loaded.config["model"]
    c.mode = "albef_original"
    c.modalities.image = image_tower(**loaded.config["modalities"]["image"])
    c.modalities.text = text_tower(**loaded.config["modalities"]["text"])
    c.model.update(model)
    c.queue.size = len(loaded.source.queue["id"])
    c.ema.decay = golden["config"]["momentum"]
    c.optim.lr = ConfigDict({"schedule": "constant", "value": LEARNING_RATE})
    c.optim.update({"weight_decay": WEIGHT_DECAY, "b1": 0.9, "b2": 0.999, "eps": EPS, "clip": 0.0})
    return c


def first_state(loaded, tx, batch) -> State:
    """The state of step 0: weights, teacher and queue of the file; batch: examples of a step."""
    ema, queue = (jax.tree.map(jnp.asarray, t) for t in (loaded.source.ema, loaded.source.queue))
    return State(
        jnp.zeros((), jnp.int32),
        loaded.params,
        ema,
        tx.init(loaded.params),
        from_ring(queue, batch),
        new_health(),
        seed_key(base()),
    )


def objectives(draws) -> list[Objective]:
    """The three objectives of the original with the recorded draws."""
    own = {
        "contrastive": {"momentum": True, "alpha": draws["alpha"]},
        "itm": {"negatives": draws["negatives"]},
        "mlm": {"momentum": True, "alpha": draws["alpha"], "masked": draws["masked"]},
    }
    return [
        Objective(n, OBJECTIVES[n], 1.0, k | {"mode": "albef_original"}) for n, k in own.items()
    ]


def recorded(z, dtype):
    """(batch, draws) of a step."""
    batch = make_batch(z["image"], z["input_ids"], z["attention_mask"])
    draws = {
        "alpha": jnp.asarray(z["alpha"], dtype),
        "negatives": (jnp.asarray(z["neg_image_idx"]), jnp.asarray(z["neg_text_idx"])),
        "masked": (
            jnp.asarray(z["mlm_input_ids"], jnp.int32),
            jnp.asarray(z["mlm_labels"], jnp.int32),
        ),
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
        "image_embeds": image.x,
        "vision_proj": out["image"].embed,
        "text_proj": out["text"].embed,
        "vision_proj_m": out_m["image"].embed,
        "text_proj_m": out_m["text"].embed,
        "itm_logits": jnp.concatenate([net.match(net.fuse(q, c)) for q, c in pairs]),
        "mlm_logits": logits,
        "mlm_logits_m": logits_m,
    }


def make_recorder(config, loaded, tx):
    """Jitted fn(state, batch, draws) -> (next state, metrics, outputs, gradients)."""

    @jax.jit
    def run(state, batch, draws):
        terms = objectives(draws)
        new, metrics = make_step(config, loaded.model, terms, tx)(state, batch)
        moved = state.replace(ema=new.ema)  # a step moves the teacher first
        gradients, _ = jax.grad(make_loss(config, loaded.model, terms), has_aux=True)(
            state.params, moved, batch
        )
        return new, metrics, outputs(loaded.model, state.params, new.ema, batch, draws), gradients

    return run


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
        run, gradients, size = make_recorder(config, loaded, tx), [], len(z[f"{steps[0]}.image"])
        state = first_state(loaded, tx, size)
        for s in steps:
            record = {k.split(".", 1)[1]: v for k, v in z.items() if k.startswith(f"{s}.")}
            batch, draws = recorded(record, dtype)
            state, metrics, ours, gradient = run(state, batch, draws)
            gradients.append(gradient)
            check_losses(s, record, state, metrics, dtype, report)
            # In float32 later outputs carry what Adam makes of gradients near zero (within_adam).
            if s == steps[0] or np.dtype(dtype) == np.float64:
                check_outputs(s, record, ours, dtype, report)
        path = folder / "pretrain_grads_step0.npz"
        if path.is_file():
            theirs = loaded.gradients(report.load(path))
            compare_gradients(report, f"step {steps[0]} gradients", gradients[0], theirs, dtype)
        check_final(folder, loaded, state, gradients, size, dtype, report)


def check_losses(s, record, new, metrics, dtype, report):
    """Losses and queue of one step."""
    for name, theirs in OBJECTIVE_NAMES.items():
        report.compare(
            f"step {s} loss_{theirs}", metrics[f"{name}/loss"], record[f"loss_{theirs}"], dtype
        )
    ring = to_ring(new.queue, len(record["image"]))
    queue = {m: ring[m].T for m in ("image", "text")} | {"ptr": ring["ptr"][None]}
    names = {"image": "image_queue_after", "text": "text_queue_after", "ptr": "queue_ptr_after"}
    report.compare(f"step {s} queue", queue, {m: record[n] for m, n in names.items()}, dtype)


def check_outputs(s, record, ours, dtype, report):
    """What towers and heads gave in one step."""
    shown = {k: v for k, v in ours.items() if k in record}
    wanted = {
        k: np.asarray(unit(jnp.asarray(record[k]))) if "proj" in k else record[k] for k in shown
    }
    report.compare(f"step {s} outputs", shown, wanted, dtype)


def check_final(folder, loaded, state, gradients, batch, dtype, report):
    """Weights, teacher, temperature and queue after the last step."""
    path = folder / "pretrain_weights_final.safetensors"
    if not path.is_file():
        return
    final = import_weights(path, cfg=loaded.config, act=acts(loaded.config))
    without_teacher = ("match_head", "temperature")
    pairs = {"weights": (state.params, final.params)}
    pairs["EMA"] = [
        {k: v for k, v in t.items() if k not in without_teacher} for t in (state.ema, final.ema)
    ]
    steps = f"after {len(gradients)} steps"
    for name, (ours, theirs) in pairs.items():
        if np.dtype(dtype) == np.float64:
            report.compare(f"{name} {steps}", ours, theirs, dtype)
            continue
        (ours, _), (theirs, _) = split_key_biases(ours), split_key_biases(theirs)
        if name == "weights":
            errors = within_adam(ours, theirs, gradients, LEARNING_RATE, EPS)
            report.worst_of(
                f"{name} {steps}", errors, dtype, "without key biases; see report.within_adam"
            )
        else:
            report.compare(f"{name} {steps}", ours, theirs, dtype, "without key biases")
    report.compare(
        "temperature at the end", state.params["temperature"], final.params["temperature"], dtype
    )
    ring = to_ring(state.queue, batch)
    queue = {m: ring[m] for m in ("image", "text", "ptr")}
    report.compare("queue at the end", queue, {m: final.queue[m] for m in queue}, dtype)


def check_groups(folder, report):
    """Our weight decay of every parameter against the original's groups."""
    path = folder / "pretrain_param_groups.json"
    if not path.is_file() or not (folder / "pretrain_weights_init.safetensors").is_file():
        return
    loaded = load_albef(folder, "pretrain_weights_init.safetensors", np.float32)
    decays = flatten_dict(factors(loaded.params, RULES["albef_original"])[1], sep="/")
    table = make_table("albef", loaded.config, "text_encoder.bert.")
    ours = {
        e.theirs: [decays[p.removeprefix("params/")] for p in e.ours]
        for e in table.entries
        if e.part == "params"
    }
    groups = json.loads(path.read_text())
    theirs = {n: g["weight_decay"] for g in groups for n in g["names"]}
    full = max(theirs.values())
    wrong = [n for n, d in theirs.items() if {x * full for x in ours.get(n, [None])} != {d}]
    wrong += sorted(set(ours) - set(theirs))
    note = f"{len(theirs)} parameters" + (f", wrong: {', '.join(wrong[:4])}" if wrong else "")
    report.add("weight decay by parameter", len(wrong), np.float64, note)
