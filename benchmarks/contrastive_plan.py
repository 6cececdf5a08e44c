"""The contrastive loss alone, planned for a TPU pod: python -m benchmarks.contrastive_plan

Compiles loss and gradient of each kernel at each number of pairs for --target (needs libtpu: pip
install '.[tpu]') and prints temporaries a device, predicted milliseconds of operations, of exchange
and of what exchange nothing hides, as --plan predicts them, and the step: operations and that.
"""

import argparse
import os

from multimodal.planning.compiling import ENVIRONMENT, failure, require_libtpu, topology_devices

os.environ.update(ENVIRONMENT)

SIZES = (32_768, 262_144, 1_048_576)


def plain(kind):
    """Loss of all similarities at once."""
    import jax
    import jax.numpy as jnp

    from multimodal.objectives import contrastive as c

    def softmax(x, y, ids, valid, scale):
        rows = [
            c.plain_rows(p, None, (q, None), None, ids, valid, scale) for p, q in ((x, y), (y, x))
        ]
        return sum(rows) / 2

    def sigmoid(x, y, ids, valid, scale):
        logits = scale * c.similarity(x, y) - 10.0
        signed = jnp.where(ids[:, None] == ids[None], logits, -logits)
        loss = -jnp.where(valid[:, None] & valid[None], jax.nn.log_sigmoid(signed), 0).sum(1)
        return c.masked_mean(loss, valid)

    return {"softmax": softmax, "sigmoid": sigmoid}[kind]


def blockwise(kind, block):
    """Loss by blocks of columns."""
    from multimodal.objectives.blockwise import sigmoid_pairs, softmax_pairs

    if kind == "softmax":
        return lambda *a: softmax_pairs(*a, block=block)[0]
    return lambda *a: sigmoid_pairs(*a, -10.0, block=block)[0]


def compiled(fn, target, size, dim, dtype):
    """The compiled value and gradient of a loss for a target's devices."""
    import jax
    import jax.numpy as jnp

    from multimodal.training.sharding import batch_sharding, make_mesh, replicated
    from multimodal.training.xla_flags import compiler_options

    mesh = make_mesh(devices=topology_devices(target))
    rows, everywhere = batch_sharding(mesh), replicated(mesh)

    def shape(s, d, sharding=rows):
        return jax.ShapeDtypeStruct(s, d, sharding=sharding)

    x = shape((size, dim), dtype)
    args = (
        x,
        x,
        shape((size,), jnp.int32),
        shape((size,), bool),
        shape((), jnp.float32, everywhere),
    )
    with jax.set_mesh(mesh):
        layout = (everywhere, (rows, rows, everywhere))
        run = jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 4)), out_shardings=layout)
        return run.lower(*args).compile(compiler_options=compiler_options("tpu", target.chip.name))


def row(name, fn, target, size, dim, dtype):
    """One line of the table."""
    from multimodal.planning.cost import cost_of
    from multimodal.planning.hlo import parse
    from multimodal.planning.predict import exposed_seconds, network_seconds

    try:
        program = compiled(fn, target, size, dim, dtype)
    except Exception as e:  # the compiler's own out-of-memory, among others
        found = failure(e)
        used = found.get("why", "out of memory")
        if "total" in found:
            used = f"out of memory, {found['total'] / 2**30:.1f} GiB"
        return [name, f"{size:,}", used, "", "", "", ""]
    stats = program.memory_analysis()
    temp = max(stats.temp_size_in_bytes, stats.peak_memory_in_bytes - stats.argument_size_in_bytes)
    cost = cost_of(parse(program.as_text()), target.devices, target.slices)
    work = 1e3 * sum(o.cycles for o in cost.operations) / target.chip.clock
    sent = 1e3 * network_seconds(target, cost.collectives)
    waits = 1e3 * exposed_seconds(target, cost.collectives)
    times = (f"{t:.2f}" for t in (work, sent, waits, work + waits))
    return [name, f"{size:,}", f"{temp / 2**20:.0f}", *times]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="tpu:v5e:16x16")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kinds", default="softmax,sigmoid")
    parser.add_argument("--kernels", default="plain,blockwise")
    args = parser.parse_args()
    require_libtpu()
    from multimodal.planning.targets import parse_target

    target = parse_target(args.target)
    print(f"{target.name}, {args.dtype}, {args.dim} dimensions\n")
    heads = ["loss", "pairs", "temporaries, MiB a device", "operations, ms", "exchange, ms"]
    heads += ["exposed, ms", "step, ms"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for kind in args.kinds.split(","):
        for size in map(int, args.sizes.split(",")):
            kernels = {"plain": plain(kind), "blockwise": blockwise(kind, args.block)}
            for name in args.kernels.split(","):
                fn = kernels[name]
                line = row(f"{kind}, {name}", fn, target, size, args.dim, args.dtype)
                print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
