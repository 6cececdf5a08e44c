"""A plan as a table for people."""

GIB = 2**30


def render(plan: dict) -> str:
    """Lines of a plan, as make_plan gives it."""
    parts = (_head, _memory, _advice, _work, _time, _resources, _operations)
    return "\n".join(line for part in parts for line in part(plan))


def _head(plan):
    mesh = plan["mesh"]
    yield (
        f"{plan['target']}: {plan['devices']:,} devices, mesh data {mesh['data']} x fsdp "
        f"{mesh['fsdp']}, global batch {plan['batch_size']:,}, micro-batches "
        f"{plan['micro_batches']}"
    )
    how = "compiled for it" if "compile_seconds" in plan else "by formula"
    if plan["fits"] is False and plan["target"].startswith("tpu"):
        how = "the compiler ran out of memory"
    yield f"fits                 {'yes' if plan['fits'] else 'NO'} ({how})"


def _memory(plan):
    yield "memory a device"
    for kind, size in plan["memory"]["kinds"].items():
        if size:
            yield _row(kind, _bytes(size))
    sizes = plan["memory"]
    total = _bytes(sizes["total"]) if sizes["total"] else "more than there is"
    yield _row("total", f"{total} of {_bytes(sizes['limit'])}")


def _advice(plan):
    if plan["fits"] is not False:
        return
    found = plan.get("advice")
    if found:
        how = "compiled" if found["checked"] else "by formula"
        yield f"to make it fit       {found['flags']} ({how}: {_bytes(found['total'])})"
    else:
        yield (
            "to make it fit       no remat, micro_batches or mesh.fsdp found that does: take more "
            "devices, or a smaller batch_size"
        )


def _work(plan):
    work = plan["flops"]
    yield "work"
    yield _row(
        "model FLOPs a step", f"{work['step']:.4g} ({work['sample'] / 1e9:,.4g} GFLOP a sample)"
    )
    if "bytes" in plan:
        yield _row("HBM traffic a device", _bytes(plan["bytes"]["hbm"]))
        yield _row("sent by a device", _bytes(plan["bytes"]["network"]))


def _time(plan):
    time, bound = plan["time"], plan["time"]["bound"]
    yield "time"
    if time["step"]:
        yield _row(
            "step, predicted",
            f"{_ms(time['step'])} = operations {_ms(time['operations'])} + exchange "
            f"{_ms(time['exchange'])}; MFU {plan['mfu']:.1%}",
        )
        if plan.get("open_loops"):
            yield _row("", f"{plan['open_loops']} loops whose turns the data decide count once")
    else:
        yield _row("step, predicted", f"not known: {plan['why_no_time']}")
    if bound:
        each = ", ".join(f"{k} {_ms(t)}" for k, t in time["roofline"].items() if t is not None)
        yield _row("step, roofline", f"{_ms(bound)} ({each}); MFU at most {plan['mfu_bound']:.1%}")
        yield _row("roofline binds by", plan["binds"])
    key = "" if time["step"] else "_bound"
    most = "" if time["step"] else "at most "
    if plan[f"samples_per_s{key}"]:
        yield _row("samples/s", f"{most}{plan[f'samples_per_s{key}']:,.0f}")
    hours = plan[f"hours_per_epoch{key}"]
    if hours:
        least = "" if time["step"] else "at least "
        yield _row("hours an epoch", f"{least}{hours:,.2f} ({plan['examples']:,} examples)")
    elif bound:
        yield _row("hours an epoch", "give --plan_examples, the data is not here")


def _resources(plan):
    if "by_resource" not in plan:
        return
    whole = plan["time"]["step"]
    shares = {**plan["by_resource"], "exchange": plan["time"]["exchange"]}
    yield "what the time goes to"
    for key, seconds in shares.items():
        yield _row(key, f"{_ms(seconds)} ({seconds / whole:.1%})")


def _operations(plan):
    if not plan.get("operations"):
        return
    whole = plan["time"]["step"]
    yield "longest operations"
    for o in plan["operations"]:
        yield f"  {_ms(o['seconds']):>10} {o['seconds'] / whole:6.1%}  {o['binds']:<22} {o['name']}"
    for c in plan.get("collectives", ())[:6]:
        yield f"  {_bytes(c['bytes']):>10} sent by {c['count']} x {c['kind']} over {c['group']}"


def _row(name, value):
    return f"  {name:<29} {value}"


def _ms(seconds):
    return f"{seconds * 1e3:,.1f} ms" if seconds < 100 else f"{seconds:,.0f} s"


def _bytes(size):
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"
