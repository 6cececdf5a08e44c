"""docs/scaling.md and its plots, from the results of scaling.py and scaling_notes.md."""

import json
import pathlib

GIB = 2**30
HEAD = """# Predicted scaling

Written by `python benchmarks/scaling.py`. **Nothing here was measured on a TPU.** Each number comes
from compiling the real train step (`train.py --plan`) for a slice that was not there: memory is the
compiler's own peak, which is what it holds against the chip's; time is the sum of the compiler's
estimated cycles over all operations and loops, plus what a bandwidth model of the exchanges between
chips leaves after the operations that the compiler runs beside them.

Settings: bfloat16, `mesh.fsdp=16` (B/16 and ALBEF: 4), the compiler options of
`multimodal/training/xla_flags.py`, CLIP as `configs/clip.py:SIZE,tiled` (256 tokens an image, 64 a
text; B/16 at 256 pixels), ALBEF as `configs/albef.py:tiled` (256 tokens and 32), as few
micro-batches as fit (k), and the first of these that then does, for ALBEF of the last two:

- `none`: no loop over layers, nothing computed again;
- `unrolled`: no loop, the image tower's queries, keys, values and logits are computed again
  (`configs/clip.py:SIZE,tiled,unrolled`);
- `context`: the same, and the first product of its MLP;
- `loop`: a loop over layers, nothing computed again;
- `full`: a loop over layers that computes all again (`configs/clip.py:SIZE,tiled`).

MFU counts model FLOPs only (`multimodal/training/flops.py`): `full` executes 4/3 of them, and
micro-batches one more forward pass as well.

{run} of {all} cases were planned so far, {untimed} of them for memory alone: the compiler was
ended before it generates code, whose size, up to 1.3 GiB, is not in the memory. Their speed is not
the compiler's: it is the MFU of a timed case of the same model and slice, less what is computed
again. `~`: of one with the same setting, of those the one with the nearest batch; `~~`: there is
none, so of another setting, less a share of the forward pass that was fitted to L/14 and H/14 on
v5e; `not timed`: there is none at all, or its micro-batches were more than four times as large.
Where both are known the rule gives

{checked}

`-` is a case that was not planned. One costs the compiler minutes; the same command goes on with
the rest. Slices without any are left out.
"""
# What a setting's backward pass computes again, as a share of the time of a forward pass: fitted to
# L/14 and H/14 on v5e. By operations it would be 0.25, 0.58 and 1, which made guesses 10 % too far.
AGAIN = {"none": 0, "loop": 0, "unrolled": 0.1, "context": 0.2, "full": 0.5}
ERROR = """
## How far to trust it

- **Memory**: the compiler's; it is what refuses a program on the machine.
- **Time**: one calibration point. For a decoder block of MaxText's 16B model on v5e-256 the same
  sum of cycles gave 53.0 % MFU with default options and 62.5 % with the VMEM option that MaxText
  sets; published are 61.1 %. Widths were a stand-in and exchanges were not in it. Take the times as
  right to about 15 %, and better for ranking variants than for budgets.
- **No published throughput of CLIP on TPUs** is known to us to compare with: big_vision publishes
  none, OpenCLIP's are of GPUs. What those reached is far below any roofline, which is all that a
  plan for GPUs gives. It is a bound, not a prediction:

| model, GPU | published samples/s a GPU | plan's bound a GPU | share |
| --- | --- | --- | --- |
{gpus}

Published: LAION's scaling-laws-openclip, trained_models_info.csv (A100 40 GB), and NVIDIA's NeMo
performance page for CLIP (g/14). The bound is model FLOPs at the dense bfloat16 peak.
"""
# model, GPU, published samples/s a GPU, forward GFLOP a pair (OpenCLIP's model_profile.csv)
PUBLISHED = (
    ("B/32", "a100", 850, 14.78),
    ("B/16", "a100", 396, 41.09),
    ("L/14", "a100", 105, 175.33),
    ("H/14", "a100", 42, 381.68),
    ("g/14", "a100", 69.9, 581.15),
    ("g/14", "h100", 116.9, 581.15),
)


def write_page(folder, models, targets, batches):
    """Write scaling.md beside the folder of results, and a plot for each target into it."""
    found = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    rows = {(m, t, b): found.get(key(m, t, b)) for m in models for t in targets for b in batches}
    run = sum(r is not None for r in rows.values())
    memory_alone = sum(r is not None and untimed(r) for r in rows.values())
    checked = "\n".join(f"- {line}" for line in checks(rows)) or "- nothing yet"
    parts = [HEAD.format(run=run, all=len(rows), untimed=memory_alone, checked=checked)]
    for target in [t for t in targets if any(rows[m, t, b] for m in models for b in batches)]:
        parts.append(f"\n## {target.removeprefix('tpu:')}\n")
        parts += [table(rows, models, target, batches)]
        if plot(rows, models, target, batches, folder / f"{slug(target)}.png"):
            parts.append(
                f"\n![samples a second](scaling/{slug(target)}.png)\n\nHollow: `~`, `~~`.\n"
            )
    notes = pathlib.Path(__file__).with_name("scaling_notes.md")
    parts.append("\n" + notes.read_text(encoding="utf-8"))
    parts.append(ERROR.format(gpus="\n".join(gpu_rows())))
    (folder.parent / "scaling.md").write_text("\n".join(parts), encoding="utf-8")


def untimed(result):
    """Whether a result tells that a case fits, and not how long it takes."""
    return bool(result["fits"]) and not result.get("mfu")


def key(model, target, batch):
    return f"{model}_{slug(target)}_{batch}"


def slug(target):
    return target.removeprefix("tpu:").replace(":", "-")


def table(rows, models, target, batches):
    """One row a model, one column a batch: MFU, samples/s, memory, micro-batches."""
    lines = ["| model | " + " | ".join(f"{b:,}" for b in batches) + " |"]
    lines += ["| --- |" + " --- |" * len(batches)]
    for m in models:
        cells = [cell(rows[m, target, b], scaled(rows, (m, target, b))) for b in batches]
        lines.append(f"| {m} | " + " | ".join(cells) + " |")
    lines.append("\nMFU, samples/s, memory of a chip, micro-batches (k), setting.")
    return "\n".join(lines)


def scaled(rows, case, same=None):
    """What a planned case would reach going by a timed one of its model and slice: the nearest
    batch of those with its setting, else of all. {mfu, samples_per_s, same: whether of its
    setting}; None: there is no such case, or it does not fit. same: True goes by cases of its
    setting alone, False by others alone.
    """
    model, target, batch = case
    r = rows[case]
    if r is None or not r["fits"]:
        return None
    known = [
        (x["setting"] != r["setting"], max(b, batch) / min(b, batch), b)
        for (m, t, b), x in rows.items()
        if (m, t) == (model, target)
        and b != batch
        and x
        and x.get("mfu")
        and batch / r["micro_batches"] >= b / x["micro_batches"] / 4
    ]
    known = [k for k in known if same is None or k[0] != same]
    if not known:
        return None
    differs, _, nearest = min(known)
    other = rows[model, target, nearest]
    share = executed(other) / executed(r)
    return {k: other[k] * share for k in ("mfu", "samples_per_s")} | {"same": not differs}


def executed(r):
    """How long a step takes, in forward passes: three, and what is computed again."""
    return 3 + AGAIN[r["setting"]] + (r["micro_batches"] > 1)


def checks(rows):
    """What `scaled` says of each case that is timed as well."""
    for (m, t, b), r in rows.items():
        for same in (True, False):
            found = r and r.get("mfu") and scaled(rows, (m, t, b), same)
            if found:
                sign, name = ("~" if same else "~~"), f"{m} on {t.removeprefix('tpu:')} at {b:,}"
                yield f"{sign} {name}: {found['mfu']:.1%} for {r['mfu']:.1%}"


def cell(r, guess):
    """What the table says of a case; guess: what `scaled` says of it."""
    if r is None:
        return "-"
    if not r["fits"]:
        how = "by estimate" if r.get("why") == "estimate" else "the compiler"
        return f"does not fit ({how})" if r["fits"] is False else "the compiler failed"
    size = f"{r['memory']['total'] / GIB:.1f} GiB, k={r['micro_batches']}, {r['setting']}"
    if r.get("mfu"):
        return f"**{r['mfu']:.1%}**, {r['samples_per_s']:,.0f}/s, {size}"
    if guess:
        sign = "~" if guess["same"] else "~~"
        return f"{sign}{guess['mfu']:.0%}, {guess['samples_per_s']:,.0f}/s, {size}"
    return f"not timed, {size}"


def gpu_rows():
    from multimodal.chips import CHIPS

    for model, gpu, rate, forward in PUBLISHED:
        bound = CHIPS[gpu].flops / (3e9 * forward)
        yield f"| {model}, {gpu.upper()} | {rate} | {bound:,.0f} | {rate / bound:.0%} |"


def points_of(rows, model, target, batches):
    """(batch, samples/s, whether timed) of each case of which that is known."""
    for b in batches:
        case = model, target, b
        timed = bool(rows[case] and rows[case].get("mfu"))
        found = rows[case] if timed else scaled(rows, case)
        if found:
            yield b, found["samples_per_s"], timed


def plot(rows, models, target, batches, path):
    """Predicted samples a second over the global batch; False where no model has two points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = {m: list(points_of(rows, m, target, batches)) for m in models}
    if max(map(len, lines.values())) < 2:
        return False
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for i, (m, points) in enumerate(lines.items()):
        if points:
            axes.plot(*zip(*[p[:2] for p in points]), color=f"C{i}", label=m)
            for b, rate, timed in points:
                axes.plot(b, rate, "o", color=f"C{i}", mfc=f"C{i}" if timed else "white")
    axes.set(xscale="log", yscale="log", xlabel="global batch", ylabel="samples/s (predicted)")
    axes.set_title(target.removeprefix("tpu:"))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
