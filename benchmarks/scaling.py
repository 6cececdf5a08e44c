"""Predicted scaling of CLIP and ALBEF on TPU slices: python benchmarks/scaling.py

Plans each case that has no result yet (docs/scaling/CASE.json, so that a killed run goes on), then
writes docs/scaling.md and its plots from all that there are. A case takes the compiler minutes:
--models, --targets and --batches choose some, --minutes ends the run after the case under way, and
--render plans nothing.
"""

import argparse
import json
import os
import pathlib
import sys
import time

from scaling_page import key, write_page

os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "scaling"

REMAT = [f"{s}.remat=full" for s in ("modalities.image", "modalities.text", "model.fusion")]
MODELS = {  # name: (config, overrides)
    "clip-b16": ("configs/clip.py:b16,tiled", []),
    "clip-l14": ("configs/clip.py:l14,tiled", []),
    "clip-h14": ("configs/clip.py:h14,tiled", []),
    "clip-g14": ("configs/clip.py:g14,tiled", []),
    "albef-base": ("configs/albef.py", REMAT),
}
TARGETS = ("tpu:v5e:16x16", "tpu:v5p:8x8x8", "tpu:v6e:16x16")
BATCHES = (8_192, 32_768, 131_072, 262_144, 1_048_576)
FSDP = 16
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
        if not path_of(case).exists():
            result = run(*case)
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


def run(model, target, batch) -> dict:
    """The plan of a case, in as few micro-batches as fit: by the estimate first, then by the
    compiler.
    """
    from multimodal.config import load_config
    from multimodal.errors import UserError
    from multimodal.planning.plan import make_plan
    from multimodal.planning.targets import parse_target

    spec, overrides = MODELS[model]
    devices = parse_target(target).devices
    micro = first_guess(spec, overrides, parse_target(target), batch)
    if micro is None:
        return {"target": target, "batch_size": batch, "fits": False, "why": "estimate"}
    while micro <= batch // devices:
        more = [f"batch_size={batch}", f"mesh.fsdp={FSDP}", f"micro_batches={micro}"]
        config = load_config(str(ROOT / spec), [*overrides, *more])
        try:
            plan = make_plan(config, target, examples=1, advise=False)
        except UserError as e:
            return {"target": target, "batch_size": batch, "fits": None, "why": str(e)}
        if plan["fits"]:
            break
        micro *= 2
    return {key: plan[key] for key in KEPT if key in plan}


def first_guess(spec, overrides, target, batch):
    """The fewest micro-batches that fit by the estimate; None where none do."""
    from multimodal.config import load_config
    from multimodal.planning import memory

    micro = 1
    while micro <= batch // target.devices:
        more = [f"batch_size={batch}", f"mesh.fsdp={FSDP}", f"micro_batches={micro}"]
        config = load_config(str(ROOT / spec), [*overrides, *more])
        # The estimate is above what the compiler needs: let that decide what is near.
        if memory.estimate(config, target.devices).total < 1.3 * target.chip.hbm:
            return micro
        micro *= 2
    return None


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from multimodal.cli import mark_flags_as_parsed

    mark_flags_as_parsed()
    main()
