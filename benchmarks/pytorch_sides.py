"""The processes of benchmarks/pytorch.py: each holds one side's step and runs it on request."""

import json
import os
import pathlib
import resource
import sys
import time


def work(side, what, folder):
    """One side: print its first losses, then for each number read run so many steps."""
    path = pathlib.Path(folder, "inputs.npz")
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    what = json.loads(what)
    try:
        held = Ours(side, what, path) if "ours" in side else Theirs(side, what, path)
    except WrongDevice as e:
        print(json.dumps({"failed": str(e)}), file=replies, flush=True)
        return
    print(json.dumps(held.ready()), file=replies, flush=True)
    for line in sys.stdin:
        if line == "rate\n":
            found = {"rate": product_rate(held.config.model.dtype)}
            print(json.dumps(found), file=replies, flush=True)
            continue
        count, began, before = int(line), time.perf_counter(), os.times()
        for _ in range(count):  # as train.py: none is waited for before the next is given out
            held.step()
        held.wait()
        after, wall = os.times(), time.perf_counter() - began
        system = after.system - before.system
        row = [wall, after.user - before.user + system, system]
        row = [x / count for x in row] + [held.memory()]
        print(json.dumps(row), file=replies, flush=True)


class WrongDevice(Exception):
    """A side would run elsewhere than it should."""


def check_device(here, wanted, package):
    """Raise WrongDevice before anything is built where a package did not find the device."""
    if here != wanted:
        raise WrongDevice(f"it would run on a {here}, not on a {wanted}: install {package}")


def process_memory():
    """The process's memory high-water mark in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Ours:
    """Our step, compiled as train.py does; weights and batch go to a file for PyTorch."""

    def __init__(self, side, what, path):
        import jax

        from multimodal.cli import mark_flags_as_parsed, use_compilation_cache
        from multimodal.config import load_config
        from multimodal.training import setup
        from multimodal.training.cpu_memory import keep_memory
        from multimodal.training.sharding import make_mesh
        from multimodal.training.step import lower_step, make_step
        from multimodal.training.xla_flags import compiler_options

        mark_flags_as_parsed()
        use_compilation_cache()
        keep_memory()  # before the devices are asked for, as train.py does
        check_device(jax.default_backend(), what["device"], "jax[cuda13]")
        self.config = load_config(what["config"], what["overrides"])
        if "unrolled" in side:
            unroll(self.config)
        if "xla" in side:
            self.config.model.attention_kernel = "xla"
        mesh = make_mesh(devices=jax.local_devices()[:1])
        batch, tokenizer = first_batch(self.config, mesh)
        goals = setup.get_objectives(self.config, tokenizer)
        with jax.set_mesh(mesh):
            model, tx, self.state = setup.build_state(self.config, mesh)
            save(path, self.config, self.state.params, batch)
            step = make_step(self.config, model, goals, tx)
            options = compiler_options(jax.default_backend())
            lowered = lower_step(step, self.state, batch)
            self.compiled = lowered.compile(compiler_options=options)
        self.batch = batch

    def step(self):
        """Give out a step."""
        self.state, self.metrics = self.compiled(self.state, self.batch)

    def wait(self):
        """Until all steps are done."""
        import jax

        jax.block_until_ready((self.state, self.metrics))

    def losses(self):
        """{name: loss} of the last step."""
        return {k: float(self.metrics[f"{k}/loss"]) for k in self.config.objectives}

    def ready(self):
        """First losses, and FLOPs of a step."""
        from multimodal.training.flops import of_step

        c = self.config
        found = {"dtype": c.model.dtype, "batch": c.batch_size}
        self.step()
        return found | {"flops": of_step(c, self.batch), "losses": self.losses()}

    def memory(self):
        """The high-water mark in GiB, of the device where it counts."""
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
        return peak / 2**30 if peak else process_memory()


def unroll(config):
    """Every stack without its loop over layers."""
    with config.unlocked():
        for stack in (*config.modalities.values(), config.model.fusion):
            if stack.get("scan"):
                stack.unroll = stack.depth


def product_rate(dtype):
    """FLOP/s of products of square matrices: the best of five turns, and of three sizes."""
    import jax
    import jax.numpy as jnp

    def turns(a, b):
        return jax.lax.fori_loop(0, count, lambda _, x: (x @ b).astype(a.dtype), a)

    on_cpu = jax.default_backend() == "cpu"
    sizes, count = ((512, 1024, 2048), 2) if on_cpu else ((4096, 8192, 16_384), 10)
    best, run = 0.0, jax.jit(turns)
    for n in sizes:
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        b = (jnp.eye(n) + 1e-3 * jax.random.normal(jax.random.key(1), (n, n))).astype(dtype)
        run(a, b).block_until_ready()
        for _ in range(5):
            began = time.perf_counter()
            run(a, b).block_until_ready()
            best = max(best, 2 * n**3 * count / (time.perf_counter() - began))
    return best


def first_batch(config, mesh):
    """(the batch of step 0, tokenizer) of the emoji; random rows where the data is not at hand."""
    import numpy as np

    from multimodal.training.setup import batch_shapes
    from multimodal.training.sharding import to_global

    if config.data.source == "tfds":
        from multimodal.training import inputs

        inputs.settle(config)
        source = inputs.get_source(config, config.data.train_split)
        tokenizer = inputs.get_tokenizer(config, None, source)
        return to_global(inputs.get_pipeline(config, source, tokenizer).batch(0), mesh), tokenizer
    rng, rows = np.random.default_rng(0), batch_shapes(config, mesh)
    size, tower = config.batch_size, config.modalities.text
    text = rng.integers(tower.eot_id + 1, tower.vocab_size, rows["text"].shape)
    text[np.arange(size), rng.integers(5, tower.max_length, size)] = tower.eot_id
    image = rng.integers(0, 256, rows["image"].shape)
    values = {"image": image, "text": text, "id": np.arange(size), "index": np.arange(size)}
    return to_global({k: v.astype(rows[k].dtype) for k, v in values.items()}, mesh), None


def save(path, config, params, batch):
    """Write what the PyTorch side starts from; scanned blocks one by one."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    arrays = {}
    for key, value in flatten_dict(params, sep="/").items():
        value = np.asarray(value)
        if "/blocks/" in key:
            for i, layer in enumerate(value):
                arrays["params/" + key.replace("/blocks/", f"/block_{i}/")] = layer
        else:
            arrays[f"params/{key}"] = value
    arrays |= {f"batch/{k}": np.asarray(batch[k]) for k in ("image", "text", "id")}
    whole = path.with_suffix(".part.npz")
    np.savez(whole, config=json.dumps(config.to_dict()), **arrays)
    whole.rename(path)


class Theirs:
    """The step in PyTorch, on a GPU where there is one and JAX is not told to leave it."""

    def __init__(self, side, what, path):
        import numpy as np
        import torch

        from benchmarks.pytorch_model import Trainer

        with np.load(path) as z:
            arrays = {k: z[k] for k in z.files}
        self.config = json.loads(str(arrays.pop("config")))

        def part(prefix):
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not torch.cuda.is_available()
        self.device = "cpu" if on_cpu else "cuda"
        check_device("cpu" if on_cpu else "gpu", what["device"], "a PyTorch for CUDA")
        torch.set_float32_matmul_precision("highest" if on_cpu else "high")
        if "cudnn" in side:  # else PyTorch takes what it likes best
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
            torch.backends.cuda.enable_math_sdp(False)
        mode = "max-autotune-no-cudagraphs" if "autotune" in side else "default"
        self.trainer = Trainer(
            self.config, part("params/"), part("batch/"), self.device,
            compiled=mode if "compile" in side else None,
        )  # fmt: skip

    def step(self):
        """Give out a step."""
        self.last = self.trainer.step()

    def wait(self):
        """Until all steps are done."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def losses(self):
        """{name: loss} of the last step."""
        return {k: v.item() for k, v in self.last.items()}

    def ready(self):
        """First losses."""
        self.step()
        return {"losses": self.losses()}

    def memory(self):
        """The high-water mark in GiB, of the device where it counts."""
        import torch

        on_gpu = self.device == "cuda"
        return torch.cuda.max_memory_allocated() / 2**30 if on_gpu else process_memory()
