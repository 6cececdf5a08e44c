"""Checkpoints: Orbax, atomic and asynchronous, behind one small class."""

import contextlib
import hashlib
import json
import logging
import math
import pathlib
import shutil
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from multimodal.config import read_config
from multimodal.errors import UserError, first_line
from multimodal.training.distributed import meet
from multimodal.training.fingerprint import fingerprints

log = logging.getLogger(__name__)
# A write that ends within so many seconds is waited for: else runs of quick steps would be well
# into the next interval, sometimes at its end, before a kill finds the checkpoint of this one.
QUICK_WRITE = 2.0


class Checkpoints:
    """The checkpoints of a workdir, `checkpoints/STEP/`: the state, and a small JSON beside it.

    The JSON holds the fingerprint of every array, without which a checkpoint is not believed: files
    of arrays have no checksum, and a flipped bit in one would go unnoticed.

    Args:
      workdir: where they lie.
      latest: how many of the newest to keep.
      best: name of the metric by which more are kept, the largest; '' keeps none.
      keep_best: how many more.
    """

    def __init__(self, workdir, latest: int = 3, best: str = "", keep_best: int = 1):
        self._path = pathlib.Path(workdir, "checkpoints").absolute()
        policies = [keep.LatestN(latest)]
        policies += [KeepBest(workdir, best, keep_best)] if best else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def steps(self) -> list[int]:
        """Steps that there are checkpoints of, ascending."""
        return sorted(self._manager.all_steps()) if self._path.exists() else []

    def save(self, state, about=None):
        """Save a state under its step, in the background if that takes longer than QUICK_WRITE
        seconds; does nothing if that step is there.

        about: what else to remember, JSON: the data's position, the tokenizer.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        meta = sealed({"step": step, **(about or {}), "fingerprints": fingerprints(state)})
        if jax.default_backend() == "cpu":
            # Host memory is device memory here: the writer would read what the next step
            # overwrites.
            state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)
        deadline = time.monotonic() + QUICK_WRITE
        while self._manager.is_saving_in_progress() and time.monotonic() < deadline:
            time.sleep(0.005)

    def restore(self, like):
        """(state, its JSON) of the newest checkpoint that verifies, laid out as `like` (arrays, or
        their shapes with shardings).

        Newer ones, which do not, are moved to `damaged/`, with a warning. Raises UserError where
        none verifies; then nothing is moved.
        """
        failed = {}
        for step in reversed(self.steps()):
            found, why = self._try(step, like)
            if all_agree(found is not None):
                self._set_aside(failed)
                return found
            failed[step] = why or "another process cannot read it"
            log.warning("checkpoint %d does not verify: %s", step, failed[step])
        told = "; ".join(f"{step}: {why}" for step, why in failed.items())
        raise UserError(
            f"{self._path}: no checkpoint verifies ({told}): take another --workdir, or remove the "
            "folder to start anew"
        )

    def _try(self, step, like):
        """((state, its JSON), '') of a checkpoint, or (None, what is wrong with it)."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restore = ocp.args.StandardRestore(abstract)
        args = ocp.args.Composite(state=restore, meta=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=args)
            check_meta(found["meta"], step)
            check_arrays(found["state"], found["meta"])
        except Exception as e:  # what a damaged file makes the reader raise is not documented
            return None, (str(e) or repr(e)).splitlines()[0][:300]
        return (found["state"], found["meta"]), ""

    def _set_aside(self, steps):
        for step in steps if jax.process_index() == 0 else ():
            target = self._path.with_name("damaged") / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier time
            (self._path / str(step)).rename(target)
            log.warning("moved to %s", target)
        if steps:
            meet("damaged checkpoints moved")
            self._manager.reload()

    def close(self):
        """Wait for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def sealed(meta) -> dict:
    """JSON with a check sum over itself."""
    return meta | {"check": _sum(meta)}


def _sum(meta):
    rest = {k: v for k, v in meta.items() if k != "check"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def check_meta(meta, step):
    """Raise ValueError where a checkpoint's JSON is not what was written for that step."""
    if not isinstance(meta, dict) or meta.get("check") != _sum(meta) or meta.get("step") != step:
        raise ValueError("its meta/metadata is damaged")


def check_arrays(tree, meta):
    """Raise ValueError where arrays have other fingerprints than when they were saved."""
    wrong = [k for k, v in fingerprints(tree).items() if meta["fingerprints"].get(k) != v]
    if wrong:
        raise ValueError(f"{len(wrong)} of its arrays are not what was saved, such as {min(wrong)}")


def all_agree(mine: bool) -> bool:
    """Whether all processes say yes."""
    if jax.process_count() == 1:
        return mine
    from jax.experimental.multihost_utils import process_allgather

    return bool(process_allgather(np.bool_(mine)).all())


class KeepBest:
    """Preservation policy: the steps whose eval/STEP.json have the largest values of a metric."""

    def __init__(self, workdir, metric, count=1):
        self._workdir, self._metric, self._count = workdir, metric, count

    def should_preserve(self, checkpoints, *, context):
        """Which of the checkpoints to keep, as Orbax asks."""
        scores = [_score(self._workdir, c.step, self._metric) for c in checkpoints]
        least = min(sorted(scores)[-self._count :], default=-math.inf)
        return [s >= least and s > -math.inf for s in scores]


def steps_of(workdir) -> list[int]:
    """Steps that a workdir has checkpoints of, ascending."""
    found = pathlib.Path(workdir, "checkpoints").glob("[0-9]*")
    return sorted(int(p.name) for p in found if p.name.isdigit())


def choose_step(workdir, step="latest") -> int:
    """The step that 'latest', 'best' (by the config's eval.best) or a number means.

    Raises UserError if there is no such checkpoint.
    """
    path, steps = pathlib.Path(workdir, "checkpoints"), steps_of(workdir)
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


def read_scores(workdir, step) -> dict[str, float]:
    """The metrics of an evaluated step; none where its eval/STEP.json is missing or damaged."""
    path = pathlib.Path(workdir, "eval", f"{step}.json")
    try:
        scores = json.loads(path.read_text(encoding="utf-8")).items()
        return {k: float(v) for k, v in scores if isinstance(v, int | float)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
        log.warning("%s: cannot be read, its scores do not count: %s", path, first_line(e))
        return {}


def _score(workdir, step, metric):
    """A metric of an evaluated step; -inf where there is none."""
    score = read_scores(workdir, step).get(metric, -math.inf)
    return -math.inf if math.isnan(score) else score


def restore_params(workdir, step="latest", host=False):
    """(step, params, ema or None) of a checkpoint, on the default device; the optimizer's state is
    not read.

    Args:
      step: 'latest', 'best' or a number.
      host: NumPy arrays instead, which need no device that holds them all.
    Raises UserError if there is none, or it does not verify, or the workdir has got another
    tokenizer since.
    """
    step = choose_step(workdir, step)
    path = pathlib.Path(workdir, "checkpoints", str(step), "state").absolute()
    alone = _alone()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with _no_word_of_metadata(), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        try:
            found = reader.metadata(path).item_metadata
            if found is None:
                raise ValueError("its metadata is missing or damaged")
            meta = read_meta(path.with_name("meta"), step)
            tree = found.tree
            wanted = {k: tree[k] for k in ("params", "ema") if tree.get(k) is not None}
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            like = jax.tree.map(
                lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), wanted
            )
            restore_args = ocp.checkpoint_utils.construct_restore_args(like)
            if host:
                restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), like)
            args = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
            found = reader.restore(path, args=args)
            check_arrays(found, meta)
        except Exception as e:  # what a damaged file makes the reader raise is not documented
            raise UserError(
                f"{path.parent}: cannot restore: {(str(e) or repr(e)).splitlines()[0][:300]}; "
                f"take another step, or train on: train.py goes on from the newest good one"
            ) from e
    check_tokenizer(workdir, meta)
    return step, found["params"], found.get("ema")


@contextlib.contextmanager
def _no_word_of_metadata():
    """Orbax warns that one item, read alone, lacks a file that only the whole checkpoint has."""
    other = lambda record: "_CHECKPOINT_METADATA" not in record.getMessage()  # noqa: E731
    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _alone():
    """By this process alone: the report of process 0 must not wait for the others."""
    return ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )


def read_meta(folder, step):
    """The JSON of a checkpoint. Raises ValueError where it is damaged."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=_alone()) as reader:
        meta = reader.restore(folder)
    check_meta(meta, step)
    return meta


def tokenizer_digest(workdir):
    """SHA-256 of a workdir's tokenizer.json; None without one."""
    path = pathlib.Path(workdir, "tokenizer.json")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def check_tokenizer(workdir, meta):
    """Raise UserError where the workdir has another tokenizer than its checkpoint was made with."""
    saved = meta.get("tokenizer")
    if saved and saved != tokenizer_digest(workdir):
        raise UserError(
            f"{pathlib.Path(workdir, 'tokenizer.json')} is not the tokenizer that step "
            f"{meta['step']} was trained with: put the run's own back"
        )
