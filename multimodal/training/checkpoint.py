"""Checkpoints: Orbax, atomic and asynchronous, behind one small class."""

import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from multimodal.errors import UserError


class Checkpoints:
    """The checkpoints of a workdir, `checkpoints/STEP/`.

    Args:
      workdir: where they lie.
      latest: how many of the newest to keep.
      best: name of the metric by which one more is kept, the largest; '' keeps none.
    """

    def __init__(self, workdir, latest: int = 3, best: str = "", read_only: bool = False):
        self._path = pathlib.Path(workdir, "checkpoints").absolute()
        policies = [keep.LatestN(latest)]
        if best:
            policies.append(
                keep.BestN(get_metric_fn=lambda m: m[best], n=1, keep_checkpoints_without_metrics=False)
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def steps(self) -> list[int]:
        """Steps that there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps()) if self._path.exists() else []

    def save(self, state, metrics: dict | None = None):
        """Save a state under its step, in the background; does nothing if that step is there."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # Host memory is device memory here: the writer would read what the next step overwrites.
            state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        self._manager.save(step, args=args, metrics=metrics, force=True)

    def restore(self, step: int, like):
        """The state of that step, laid out as `like` (arrays or ShapeDtypeStructs with shardings)."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        try:
            return self._manager.restore(step, args=args)["state"]
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise UserError(f"{self._path / str(step)}: cannot restore: {str(e).splitlines()[0]}") from e

    def close(self):
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def choose_step(workdir, step) -> int:
    """The step that 'latest', 'best' or a number means. Raises UserError if there is none."""
    manager = Checkpoints(workdir, read_only=True)
    steps = manager.steps()
    if not steps:
        raise UserError(f"{workdir}: no checkpoint under checkpoints/: train first, or mend --workdir")
    if step == "latest":
        return steps[-1]
    if step == "best":
        best = manager._manager.best_step()
        return steps[-1] if best is None else best
    if not str(step).isdigit() or int(step) not in steps:
        raise UserError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return int(step)
