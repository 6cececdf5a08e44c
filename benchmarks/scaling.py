"""Predicted scaling of CLIP and ALBEF on TPU slices: python benchmarks/scaling.py

Plans each case that has no result yet (docs/scaling/CASE.json, so that a killed run goes on), then
writes docs/scaling.md and its plots from all that there are. A case takes the compiler minutes:
--models, --targets and --batches choose some, --minutes ends the run after the case under way,
--memory asks for memory alone, which is sooner known (a later run without it goes on from there),
and --render plans nothing.
"""

import argparse
import json
import os
import pathlib
import sys
import time

from scaling_page import key, untimed, write_page

os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "scaling"

MODELS = {
    **{f"clip-{size}": f"configs/clip.py:{size},tiled" for size in ("b16", "l14", "h14", "g14")},
    "albef-base": "configs/albef.py:tiled",
}
# (remat of the image tower, unrolled), the faster and the greedier for memory first. Unrolled,
# other stacks compute nothing again; in a loop all do as the image tower.
SETTINGS = {
    "none": ("none", True),
    "unrolled": ("context+residual+up", True),
    "context": ("context+residual", True),
    "loop": ("none", False),
    "full": ("full", False),
}
# Unrolled, ALBEF's nine passes take the compiler over half an hour and 14 GB. CLIP's loops that
# keep all take more memory than its best settings without.
TRIED = {"albef-base": ("loop", "full")}
TRIED_ELSE = ("none", "unrolled", "context", "full")
TARGETS = ("tpu:v5e:16x16", "tpu:v5p:8x8x8", "tpu:v6e:16x16")
BATCHES = (8_192, 32_768, 131_072, 262_144, 1_048_576)
FSDP = {"clip-b16": 4, "albef-base": 4}  # divides their 12 heads (see docs/scaling.md)
GENEROUS = 1.1  # what is estimated to take so many times the memory may still fit
KEPT = (
    "target", "devices", "batch_size", "micro_batches", "mesh", "fits", "memory", "flops", "time",
    "mfu", "mfu_bound", "binds", "samples_per_s", "samples_per_s_bound", "why_no_time",
    "compile_seconds", "by_resource", "compiler_options",
)  # fmt: skip


def main():
    args = parse_arguments()
    began = time.monotonic()
    for case in () if args.render else cases(args):
        if args.minutes and time.monotonic() - began > 60 * args.minutes:
            break
        known = result_of(case)
        if known is None or (untimed(known) and not args.memory):
            result = run(*case, args.memory, known)
            print(key(*case), json.dumps(result.get("mfu")), flush=True)
            path_of(case).parent.mkdir(parents=True, exist_ok=True)
            part = path_of(case).with_suffix(".part")
            part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            os.replace(part, path_of(case))
    write_page(FOLDER, MODELS, TARGETS, BATCHES)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--render", action="store_true")
    return parser.parse_args()


def cases(args):
    """(model, target, batch) of all that is asked for, small batches first."""
    for batch in map(int, args.batches.split(",")):
        for target in args.targets.split(","):
            for model in args.models.split(","):
                yield model, target, batch


def path_of(case):
    return FOLDER / f"{key(*case)}.json"


def result_of(case):
    """What is known of a case; None: nothing."""
    path = path_of(case)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run(model, target, batch, memory_alone=False, known=None) -> dict:
    """The plan of a case in as few micro-batches as fit, in the fastest setting that then does: by
    the estimate first, then by the compiler. known: its result of memory alone, to go on from.
    """
    from multimodal.config import load_config
    from multimodal.errors import UserError
    from multimodal.planning import memory
    from multimodal.planning.plan import make_plan
    from multimodal.planning.targets import parse_target

    machine, why = parse_target(target), "estimate"
    tries = list(attempts(TRIED.get(model, TRIED_ELSE), batch // machine.devices))
    if known:
        tries = tries[tries.index((known["micro_batches"], known["setting"])) :]
    for micro, setting in tries:
        more = [f"batch_size={batch}", f"mesh.fsdp={FSDP.get(model, 16)}", f"micro_batches={micro}"]
        config = set_to(load_config(str(ROOT / MODELS[model]), more), setting)
        if memory.estimate(config, machine.devices, fuses=True).total > GENEROUS * machine.chip.hbm:
            continue
        try:
            plan = make_plan(config, target, 1, advise=False, memory_alone=memory_alone)
        except UserError as e:
            return {"target": target, "batch_size": batch, "fits": None, "why": str(e)}
        if plan["fits"]:
            return {"setting": setting} | {key: plan[key] for key in KEPT if key in plan}
        why = "compiler"
    return {"target": target, "batch_size": batch, "fits": False, "why": why}


def attempts(settings, most):
    """(micro-batches, setting) from fast to slow; most: examples of a device. Micro-batches compute
    the forward pass once more, and so do not go with settings that do that too.
    """
    yield from ((1, setting) for setting in settings)
    micro = 2
    while micro <= most:
        yield from ((micro, s) for s in settings if s not in ("context", "full"))
        micro *= 2


def set_to(config, setting):
    """The config with its stacks of layers run as a setting says."""
    remat, unrolled = SETTINGS[setting]
    with config.unlocked():
        for name, stack in (*config.modalities.items(), ("fusion", config.model.fusion)):
            kept = remat if name == "image" or not unrolled else "none"
            unroll = stack.get("depth", 1) if unrolled else 1
            stack.update(scan=True, unroll=max(1, unroll), remat=kept)
    return config


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from multimodal.cli import mark_flags_as_parsed

    mark_flags_as_parsed()
    main()
