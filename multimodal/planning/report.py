"""A plan as a table for people: three digits that count, and one unit a column."""

import math


def render(plan: dict) -> str:
    """Lines of a plan, as make_plan gives it."""
    parts = (_head, _memory, _advice, _work, _time, _resources, _operations)
    return "\n".join(line for part in parts for line in part(plan))


def _head(plan):
    mesh, n = plan["mesh"], plan["devices"]
    rare = [f"{axis} {mesh[axis]}" for axis in ("replica", "tensor") if mesh.get(axis, 1) > 1]
    sizes = " x ".join([*rare, f"data {mesh['data']}", f"fsdp {mesh['fsdp']}"])
    yield (
        f"{plan['target']}: {n:,} device{'s' if n != 1 else ''}, mesh {sizes}, global batch "
        f"{plan['batch_size']:,}, micro-batches {plan['micro_batches']}"
    )
    how = "compiled for it" if "compile_seconds" in plan else "by formula"
    if plan["fits"] is False and plan["target"].startswith("tpu"):
        how = "the compiler ran out of memory"
    yield f"fits                 {'yes' if plan['fits'] else 'NO'} ({how})"


def _memory(plan):
    yield "memory a device"
    sizes = plan["memory"]
    whole = sizes["total"] or sizes["limit"]
    for kind, size in sizes["kinds"].items():
        if size:
            yield _row(kind, _bytes(size, whole))
    total = _bytes(sizes["total"], whole) if sizes["total"] else "more than there is"
    yield _row("total", f"{total} of {_bytes(sizes['limit'], whole)}")


def _advice(plan):
    if plan["fits"] is not False:
        return
    found = plan.get("advice")
    if found:
        how = "compiled" if found["checked"] else "by formula"
        total = _bytes(found["total"], found["total"])
        yield f"to make it fit       {found['flags']} ({how}: {total})"
    else:
        yield (
            "to make it fit       no remat, micro_batches or mesh.fsdp found that does: take more "
            "devices, or a smaller batch_size"
        )


def _work(plan):
    work = plan["flops"]
    yield "work"
    yield _row(
        "model FLOPs a step", f"{work['step']:.4g} ({_digits(work['sample'] / 1e9)} GFLOP a sample)"
    )
    if "bytes" in plan:
        hbm = plan["bytes"]["hbm"]
        yield _row("HBM traffic a device", _bytes(hbm, hbm))
        yield _row("sent by a device", _bytes(plan["bytes"]["network"], hbm))


def _time(plan):
    time, bound = plan["time"], plan["time"]["bound"]
    whole = time["step"] or bound
    yield "time"
    if time["step"]:
        parts = {k: _seconds(time[k], whole) for k in ("step", "operations", "exposed")}
        yield _row(
            "step, predicted",
            f"{parts['step']} = operations {parts['operations']} + exposed exchange "
            f"{parts['exposed']}; MFU {_digits(100 * plan['mfu'])}%",
        )
        hidden = _seconds(time["exchange"] - time["exposed"], whole)
        yield _row("exchange beside operations", hidden)
        if plan.get("open_loops"):
            yield _row("", f"{plan['open_loops']} loops whose turns the data decide count once")
    else:
        yield _row("step, predicted", f"not known: {plan['why_no_time']}")
    if bound:
        parts = {k: t for k, t in time["roofline"].items() if t is not None}
        each = ", ".join(f"{k} {_seconds(t, whole)}" for k, t in parts.items())
        most = f"MFU at most {_digits(100 * plan['mfu_bound'])}%"
        yield _row("step, roofline", f"{_seconds(bound, whole)} ({each}); {most}")
        yield _row("roofline binds by", plan["binds"])
    key = "" if time["step"] else "_bound"
    most = "" if time["step"] else "at most "
    if plan[f"samples_per_s{key}"]:
        yield _row("samples/s", f"{most}{_digits(plan[f'samples_per_s{key}'])}")
    hours = plan[f"hours_per_epoch{key}"]
    if hours:
        least = "" if time["step"] else "at least "
        unit, span = ("hours", hours) if hours >= 0.1 else ("seconds", hours * 3600)
        yield _row(f"{unit} an epoch", f"{least}{_digits(span)} ({plan['examples']:,} examples)")
    elif bound:
        yield _row("hours an epoch", "give --plan_examples, the data is not here")


def _resources(plan):
    if "by_resource" not in plan:
        return
    whole = plan["time"]["step"]
    shares = {**plan["by_resource"], "exposed exchange": plan["time"]["exposed"]}
    yield "what the time goes to"
    for key, seconds in shares.items():
        yield _row(key, f"{_seconds(seconds, whole)} ({seconds / whole:.1%})")


def _operations(plan):
    if not plan.get("operations"):
        return
    whole = plan["time"]["step"]
    yield "longest operations"
    for o in plan["operations"]:
        took, share = _seconds(o["seconds"], whole), o["seconds"] / whole
        yield f"  {took:>12} {share:6.1%}  {o['binds']:<22} {o['name']}"
    sent = plan.get("collectives", ())[:6]
    most = max((c["bytes"] for c in sent), default=0)
    for c in sent:
        size = _bytes(c["bytes"], most)
        yield f"  {size:>12} sent by {c['count']} x {c['kind']} over {c['group']}"


def _row(name, value):
    return f"  {name:<29} {value}"


def _digits(x):
    """A number with three digits that count, or all before the point."""
    places = 2 - math.floor(math.log10(abs(x))) if x and math.isfinite(x) else 0
    return f"{x:,.{max(0, places)}f}"


def _seconds(seconds, whole):
    """A time in the unit of the whole that it is part of."""
    return f"{_digits(seconds)} s" if whole >= 100 else f"{_digits(seconds * 1e3)} ms"


def _bytes(size, whole):
    """A size in the unit of the whole that it is part of."""
    power, unit = (30, "GiB") if whole >= 2**30 else (20, "MiB")
    return f"{_digits(size / 2**power)} {unit}"
