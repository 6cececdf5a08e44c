"""The plan of a run on machines that need not be there: does it fit, how fast is it, what binds?"""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib

import jax

from multimodal.errors import UserError
from multimodal.nn.attention import PLATFORMS
from multimodal.paths import must_be_local
from multimodal.planning import advice, memory, predict
from multimodal.planning.compiling import compile_for, require_libtpu
from multimodal.planning.cost import cost_of
from multimodal.planning.exchanges import merged
from multimodal.planning.hlo import parse
from multimodal.planning.targets import Target, parse_target
from multimodal.training import flops
from multimodal.training.sharding import abstract_mesh, axes_of, check_batch
from multimodal.training.validate import validate

TRIES = 3  # compilations to find a change that fits
TOP = 12  # operations that are told
MEMORY_ALONE = "the compiler was asked for memory alone"


def make_plan(
    config, target_text: str, examples=0, hlo_folder=None, advise=True, memory_alone=False
) -> dict:
    """The plan of a config for a target, as plain data; see `write_plan` and report.py.

    Args:
      target_text: as in targets.py; examples: training examples, for the hours of an epoch; 0: the
        data's own number where the data is here, else unknown.
      hlo_folder: where the compiled program's text is kept; None: nowhere.
      advise: look for a change that fits where the config does not.
      memory_alone: for TPUs, compile only as far as it takes to tell whether it fits.
    Returns: 'fits' (True, False or None: not known), 'memory' (bytes a device by kind, 'total',
      'limit'), 'flops', 'time' (seconds; None where not known), 'mfu', ...; absent is what the
      target does not give. Raises UserError for a config, target or compiler that cannot be used.
    """
    target = parse_target(target_text)
    if target.platform == "tpu":
        require_libtpu()
    jax.config.update("jax_platforms", "cpu")  # shapes only: leave this machine's devices alone
    validate(config)
    _check_kernel(config.model.attention_kernel, target)
    mesh = abstract_mesh(target.devices, target.slices, **axes_of(config))
    check_batch(config.batch_size, mesh, config.micro_batches)
    plan = _facts(config, target, mesh)
    if target.platform == "tpu":
        plan |= compiled_plan(config, target, plan, hlo_folder, memory_alone)
    else:
        plan |= formula_plan(config, target, plan)
    if plan["fits"] is False and advise:
        plan["advice"] = find_advice(config, target, plan)
    return plan | _rates(config, plan, examples or _count_examples(config))


def _check_kernel(kernel, target):
    """Raise UserError where the target cannot run the attention kernel that the config names."""
    wanted = PLATFORMS.get(kernel, target.platform)
    if wanted != target.platform:
        raise UserError(
            f"config.model.attention_kernel {kernel!r} runs on a {wanted}, the target is "
            f"{target.name}: leave it 'auto'"
        )


def _facts(config, target: Target, mesh) -> dict:
    """What is known before anything is compiled."""
    model = flops.of_step(config)
    return {
        "target": target.name,
        "devices": target.devices,
        "batch_size": config.batch_size,
        "mesh": dict(mesh.shape),
        "micro_batches": config.micro_batches,
        "flops": {"step": model, "sample": model / config.batch_size},
        "state": memory.state_bytes(config, target.devices, target.slices),
    }


def compiled_plan(config, target: Target, plan: dict, hlo_folder=None, memory_alone=False) -> dict:
    """Memory and time from the TPU compiler."""
    result = compile_for(config, target, hlo_folder, memory_alone)
    limit = target.chip.hbm
    if result["status"] != "ok":
        sizes = _wanted_memory(plan["state"], result) | {"limit": result.get("limit", limit)}
        bound = predict.roofline(target, plan["flops"]["step"], None, None)
        fits = result["status"] == "laid out"
        why = "the program does not fit, so the compiler counts no cycles"
        out = {"fits": fits, "memory": sizes}
        if fits:
            why = MEMORY_ALONE
            out["compile_seconds"] = result["seconds"]
        return out | _time(target, plan, bound, None, why)
    kinds, total = _compiled_memory(plan["state"], result["memory"])
    out = {
        "fits": True,
        "memory": {"kinds": kinds, "total": total, "limit": limit},
        "compile_seconds": result["seconds"],
        "compiler_options": result["options"],
    }
    return out | _compiled_time(target, plan, result)


def _wanted_memory(state, result):
    """Kinds and total of a program without its code; total None: the compiler does not tell."""
    if "total" in result:
        rest = max(0, result["total"] - sum(state.values()))
        return {"kinds": state | {"activations and temporaries": rest}, "total": result["total"]}
    return {"kinds": dict(state), "total": None}


def _compiled_memory(state, stats):
    """(bytes by kind, total) of XLA's statistics; what alias says is counted once.

    The peak, state included, is what libtpu holds against the chip's memory: with its option
    xla_tpu_max_hbm_size_mib=4096 it takes a program whose sizes of temporaries and arguments sum to
    5.0 GiB, and whose peak is 3.6.
    """
    kinds = dict(state)
    padding = stats["argument"] - sum(state.values())
    kinds["padding of the state"] = max(0, padding)
    sizes = stats["argument"] + stats["temp"] + max(0, stats["output"] - stats["alias"])
    peak = stats["peak"] or sizes
    kinds["activations and temporaries"] = max(0, peak - stats["argument"])
    kinds["program"] = stats["generated_code"]
    return kinds, peak + stats["generated_code"]


def _compiled_time(target: Target, plan, result) -> dict:
    """Time and what binds it, from the program's text; without one the FLOPs' bound only."""
    why, chip, cost = result["why"], target.chip, None
    if not why:
        try:
            cost = cost_of(parse(result["hlo"]), target.devices, target.slices)
        except (ValueError, KeyError, StopIteration) as e:
            why = f"the program's text cannot be read ({type(e).__name__}: {e})"
    if cost is not None and not cost.cycles:
        why = "the compiler's text holds no estimated cycles"
    if cost is not None and cost.uncounted:
        why = f"{cost.uncounted} matrix products come without the compiler's estimate"
    if why or cost is None:
        bound = predict.roofline(target, plan["flops"]["step"], None, None)
        return _time(target, plan, bound, None, why)
    network = predict.network_seconds(target, cost.collectives)
    compute = cost.cycles / chip.clock
    bound = predict.roofline(target, plan["flops"]["step"], cost.bytes, network)
    exposed = predict.exposed_seconds(target, cost.collectives)
    out = _time(target, plan, bound, compute + exposed, "")
    out["time"] |= {"operations": compute, "exchange": network, "exposed": exposed}
    out["bytes"] = {"hbm": cost.bytes, "network": sum(c.bytes for c in cost.collectives)}
    out["open_loops"] = cost.open_loops
    out["by_resource"] = predict.time_by_resource(cost, chip)
    out["collectives"] = [dataclasses.asdict(c) for c in merged(cost.collectives)]
    out["operations"] = [
        {
            "name": o.name,
            "seconds": o.cycles / chip.clock,
            "bytes": o.bytes,
            "binds": predict.resource_of(o, chip),
        }
        for o in cost.operations[:TOP]
    ]
    return out


def formula_plan(config, target: Target, plan: dict) -> dict:
    """Memory and roofline by formula, for GPUs and CPUs: no compiler for them is asked."""
    sizes = memory.estimate(config, target.devices)
    if target.chip is None:
        limit = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        network = None
    else:
        limit = target.chip.hbm
        gathered = advice.changed(config, {"mesh.data": 1, "mesh.fsdp": 1, "mesh.replica": 1})
        whole = memory.state_bytes(gathered, config.mesh.tensor)["parameters"]
        exchanges = predict.data_parallel_exchanges(config, target, whole)
        network = predict.network_seconds(target, exchanges)
    # Read and write each byte once: parameters, moments, gradients and activations; parameters and
    # activations in each micro-batch.
    more = (config.micro_batches - 1) * (sizes.kinds["parameters"] + sizes.anew)
    hbm = 2 * (sizes.total - sizes.kinds["batch"] + more)
    bound = predict.roofline(target, plan["flops"]["step"], hbm, network)
    why = "by formula there is only a bound: no compiler was asked"
    memory_part = {"kinds": sizes.kinds, "total": sizes.total, "limit": limit}
    out = {"fits": sizes.total <= advice.MARGIN * limit, "memory": memory_part}
    return out | _time(target, plan, bound, None, why)


def _time(target: Target, plan, bound, predicted, why) -> dict:
    """The part of a plan that tells time; predicted None: not known, and why."""
    peak = target.chip.flops * target.devices if target.chip else None

    def mfu(seconds):
        return plan["flops"]["step"] / seconds / peak if seconds and peak else None

    return {
        "time": {"step": predicted, "roofline": dataclasses.asdict(bound), "bound": bound.bound},
        "mfu": mfu(predicted),
        "mfu_bound": mfu(bound.bound),
        "binds": bound.binds,
        "why_no_time": why,
    }


def _rates(config, plan, examples) -> dict:
    """Samples a second and hours an epoch, from the predicted time or, named so, from the bound."""
    out = {}
    for key, seconds in (("", plan["time"]["step"]), ("_bound", plan["time"]["bound"])):
        rate = config.batch_size / seconds if seconds else None
        out[f"samples_per_s{key}"] = rate
        out[f"hours_per_epoch{key}"] = examples / rate / 3600 if rate and examples else None
    return out | {"examples": examples or None}


def _count_examples(config) -> int:
    """Training examples of the config's data; 0 where it is not here."""
    try:
        from multimodal.training.inputs import get_source

        return len(get_source(config, config.data.train_split))
    except Exception:  # whatever a source raises: the plan does not need it
        return 0


def find_advice(config, target: Target, plan) -> dict:
    """A change that makes the step fit: {'change', 'flags', 'total', 'checked': by compiling}, or
    {} where none of the candidates does.
    """
    limit = plan["memory"]["limit"]
    used = plan["memory"]["total"] if target.platform == "tpu" else None
    for tries, (change, total) in enumerate(advice.promising(config, target, limit, used)):
        found = {"change": change, "flags": advice.as_flags(change), "total": total}
        if target.platform != "tpu":
            return found | {"checked": False}
        if tries == TRIES:
            break
        try:
            result = compile_for(advice.changed(config, change), target, memory_alone=True)
        except UserError:  # the compiler gave up on this one
            continue
        if result["status"] == "ok":  # a compiler that writes down no layout of memory
            total = _compiled_memory(plan["state"], result["memory"])[1]
            return found | {"total": total, "checked": True}
        if result["status"] == "laid out":
            return found | {"total": result["total"], "checked": True}
    return {}


def check_writable(path):
    """Raise UserError where write_plan could not write a plan, before there is one to lose."""
    with _part_of(path) as part:
        part.touch()


def write_plan(plan: dict, path):
    """Write a plan as JSON, at no moment half of it. Raises UserError where it cannot."""
    with _part_of(path) as part:
        part.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)


@contextlib.contextmanager
def _part_of(path):
    """A file beside the path to write to, gone at the end."""
    must_be_local(path, "--plan_json")
    path = pathlib.Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        yield part
    except OSError as e:
        raise UserError(f"--plan_json: cannot write {path}: {e.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
