"""Checkpoints: Orbax, atomic and asynchronous, behind one small class."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from multimodal.config import read_config
from multimodal.errors import UserError


class Checkpoints:
    """The checkpoints of a workdir, `checkpoints/STEP/`.

    Args:
      workdir: where they lie.
      latest: how many of the newest to keep.
      best: name of the metric by which one more is kept, the largest; '' keeps none.
    """

    def __init__(self, workdir, latest: int = 3, best: str = ""):
        self._path = pathlib.Path(workdir, "checkpoints").absolute()
        policies = [keep.LatestN(latest)] + ([KeepBest(workdir, best)] if best else [])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def steps(self) -> list[int]:
        """Steps that there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps()) if self._path.exists() else []

    def save(self, state):
        """Save a state under its step, in the background; does nothing if that step is there."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # Host memory is device memory here: the writer would read what the next step
            # overwrites.
            state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        self._manager.save(step, args=args, force=True)

    def restore(self, step: int, like):
        """The state of that step, laid out as `like` (arrays, or their shapes with shardings)."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        try:
            return self._manager.restore(step, args=args)["state"]
        except Exception as e:  # what a damaged file makes the reader raise is not documented
            raise UserError(
                f"{self._path / str(step)}: cannot restore: {(str(e) or repr(e)).splitlines()[0]}"
            ) from e

    def close(self):
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


class KeepBest:
    """Preservation policy: the step whose eval/STEP.json has the largest value of a metric."""

    def __init__(self, workdir, metric):
        self._workdir, self._metric = workdir, metric

    def should_preserve(self, checkpoints, *, context):
        """Which of the checkpoints to keep, as Orbax asks."""
        scores = [_score(self._workdir, c.step, self._metric) for c in checkpoints]
        best = max(scores, default=-math.inf)
        return [s == best and s > -math.inf for s in scores]


def choose_step(workdir, step="latest") -> int:
    """The step that 'latest', 'best' (by the config's eval.best) or a number means.

    Raises UserError if there is no such checkpoint.
    """
    path = pathlib.Path(workdir, "checkpoints")
    steps = sorted(int(p.name) for p in path.glob("[0-9]*") if p.name.isdigit())
    if not steps:
        raise UserError(f"{path}: no checkpoint: train first, or mend --workdir")
    if step == "latest":
        return steps[-1]
    if step == "best":
        metric = read_config(workdir).eval.best
        return max(steps, key=lambda s: (_score(workdir, s, metric), s))
    if not str(step).isdigit() or int(step) not in steps:
        raise UserError(f"{path}: no checkpoint {step}; there are {', '.join(map(str, steps))}")
    return int(step)


def _score(workdir, step, metric):
    """A metric of an evaluated step; -inf where there is none."""
    path = pathlib.Path(workdir, "eval", f"{step}.json")
    scores = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return scores.get(metric, -math.inf)


def restore_params(workdir, step="latest"):
    """(step, params, ema or None) of a checkpoint, on the default device; the optimizer's state is
    not read.

    Args:
      step: 'latest', 'best' or a number. Raises UserError if there is none, or it cannot be read.
    """
    step = choose_step(workdir, step)
    path = pathlib.Path(workdir, "checkpoints", str(step), "state").absolute()
    # By this process alone: the report of process 0 must not wait for the others.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        try:
            found = reader.metadata(path).item_metadata
            if found is None:
                raise ValueError("its metadata is missing or damaged")
            tree = found.tree
            wanted = {k: tree[k] for k in ("params", "ema") if tree.get(k) is not None}
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            like = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), wanted
            )
            restore_args = ocp.checkpoint_utils.construct_restore_args(like)
            args = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
            found = reader.restore(path, args=args)
        except Exception as e:  # what a damaged file makes the reader raise is not documented
            raise UserError(f"{path}: cannot restore: {(str(e) or repr(e)).splitlines()[0]}") from e
    return step, found["params"], found.get("ema")
