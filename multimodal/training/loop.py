"""The training loop: batches in, steps, logs, checkpoints, evaluations."""

import json
import logging
import math
import os
import pathlib
import time

import jax

from multimodal.chips import chip_of
from multimodal.config import check_same, read_config, save_config
from multimodal.errors import UserError
from multimodal.training import flops, setup
from multimodal.training.checkpoint import Checkpoints
from multimodal.training.logging import MetricLogger
from multimodal.training.optim import learning_rate
from multimodal.training.sharding import check_batch, make_mesh, to_global
from multimodal.training.step import lower_step, make_step
from multimodal.training.validate import validate
from multimodal.training.xla_flags import compiler_options

log = logging.getLogger(__name__)


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite; nothing of it was saved."""


def train(config, workdir):
    """Train to config.steps, resuming from the workdir's newest checkpoint; returns the last
    metrics.

    Raises UserError for a config, data or workdir that cannot be trained with.
    """
    workdir = pathlib.Path(workdir)
    validate(config)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir: {workdir} is a file, wanted a folder")
    if (workdir / "config.json").exists():
        check_same(config, read_config(workdir))
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    check_batch(config.batch_size, mesh, config.micro_batches, jax.process_count())
    source = setup.get_source(config, config.data.train_split)
    resumed = (workdir / "config.json").exists()
    tokenizer = setup.get_tokenizer(config, workdir if resumed else None, source)
    preflight(config, tokenizer)
    pipeline = setup.get_pipeline(config, source, tokenizer)
    goals = setup.get_objectives(config, tokenizer)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir, config.keep, config.eval.best)
        try:
            done = checkpoints.steps()
            model, tx, state = setup.build_state(config, mesh, import_weights=not done)
            if jax.process_index() == 0 and not resumed:
                if tokenizer is not None:
                    tokenizer.save(workdir / "tokenizer.json")
                save_config(config, workdir)  # last: it says that the folder is complete
            if done:
                state = checkpoints.restore(done[-1], state)
                log.info("resumed from step %d", done[-1])
            run = Run(config, workdir, mesh, model, tokenizer, checkpoints)
            return run.steps(state, make_step(config, model, goals, tx), pipeline)
        finally:
            checkpoints.close()


class Run:
    """One run of the loop; holds what does not change from step to step."""

    def __init__(self, config, workdir, mesh, model, tokenizer, checkpoints):
        self.config, self.workdir, self.mesh, self.model = config, workdir, mesh, model
        self.tokenizer, self.checkpoints = tokenizer, checkpoints
        self.lr = learning_rate(config)

    def steps(self, state, step_fn, pipeline):
        """Run from state.step to config.steps."""
        c, first = self.config, int(state.step)
        metrics, clock = {}, None
        batches = pipeline.iterate(first)
        try:
            with MetricLogger(
                self.workdir, c.steps, first, active=jax.process_index() == 0
            ) as logger:
                for step in range(first + 1, c.steps + 1):
                    began = time.perf_counter()
                    batch = to_global(next(batches), self.mesh)
                    waited = time.perf_counter() - began
                    if clock is None:
                        compiled = self._compile(step_fn, state, batch)
                        work = flops.of_step(c, batch) if flops.peak_flops() else 0.0
                        clock = Clock(c.batch_size, work)
                    state, metrics = compiled(state, batch)
                    clock.tick(waited)
                    logger.tick(step)
                    if step % c.log_every == 0 or step == c.steps:
                        logger.write(step, self._row(step, metrics, clock))
                    self._after(step, state, metrics, clock, logger)
                if not pathlib.Path(self.workdir, "eval", f"{c.steps}.json").exists():
                    self.evaluate(c.steps, state, logger)  # killed between saving and evaluating
        finally:
            batches.close()
        return {k: float(v) for k, v in metrics.items()}

    def _compile(self, step_fn, state, batch):
        chip = chip_of(jax.devices()[0].device_kind)
        options = compiler_options(jax.default_backend(), chip.name if chip else "")
        return lower_step(step_fn, state, batch).compile(compiler_options=options)

    def _row(self, step, metrics, clock):
        row = {k: float(v) for k, v in jax.device_get(metrics).items()}
        row["train/lr"] = float(self.lr(step - 1))
        row |= clock.read()
        check_finite(step, row)
        warn_of_collapse(step, row)
        return row

    def _after(self, step, state, metrics, clock, logger):
        """Save and evaluate where the config says so; neither counts as training time."""
        c = self.config
        evaluate = step == c.steps or (c.eval_every and step % c.eval_every == 0)
        if evaluate or step % c.save_every == 0:
            check_finite(step, {k: float(v) for k, v in metrics.items()})
            self.checkpoints.save(state)
            if evaluate:
                self.evaluate(step, state, logger)
            clock.restart()

    def evaluate(self, step, state, logger):
        """Evaluate a state: eval/STEP.json, and the headlines into the log."""
        from multimodal.evals import evaluate, headline

        params = state.ema if self.config.eval.use_ema else state.params
        scores = evaluate(self.config, self.model, params, self.tokenizer, self.mesh)
        if jax.process_index() == 0:
            write_scores(self.workdir, step, scores)
            logger.write(step, {f"eval/{k}": v for k, v in headline(scores).items()})
        best = self.config.eval.best
        if best and best not in scores:
            log.warning("config.eval.best: no metric %r; there are %s", best, ", ".join(scores))


def preflight(config, tokenizer):
    """Raise UserError now for what the evaluation after the last step would stumble over."""
    from multimodal.evals.data import load_eval_data
    from multimodal.evals.registry import evaluator

    for name in config.eval.names:
        evaluator(name)
    for data in load_eval_data(config, tokenizer) if config.eval.names else ():
        check_labels(config, data)
    best = config.eval.best.partition("/")[0]
    if best and best not in config.data.eval_splits:
        raise UserError(
            f"config.eval.best: {config.eval.best!r} is no metric of the splits "
            f"{', '.join(config.data.eval_splits)}; its name starts with the split"
        )
    if config.eval.rerank and "match" not in config.model.heads:
        raise UserError("config.eval.rerank needs the head 'match': add it to config.model.heads")


def check_labels(config, data):
    """Raise UserError where a classifier's labels are missing or of another kind."""
    for name, c in config.model.classifiers.items():
        if c.target not in data.targets:
            there = ", ".join(data.targets) or "no label at all"
            raise UserError(
                f"config.model.classifiers.{name}.target: split {data.name!r} has no {c.target!r}; "
                f"it has {there}"
            )
        labels = data.targets[c.target]
        if c.multi != (labels.ndim == 2):
            raise UserError(
                f"config.model.classifiers.{name}.multi is {c.multi}, but {c.target} of split "
                f"{data.name!r} has {'several labels' if labels.ndim == 2 else 'one label'} each"
            )
        classes = labels.shape[1] if c.multi else int(labels.max()) + 1
        if classes > c.classes or (c.multi and classes != c.classes):
            raise UserError(
                f"config.model.classifiers.{name}.classes is {c.classes}, but {c.target} of split "
                f"{data.name!r} has {classes} classes"
            )


def write_scores(workdir, step, scores):
    """Write eval/STEP.json, at no moment half of it; other scores of that step stay."""
    path = pathlib.Path(workdir, "eval", f"{step}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        scores = json.loads(path.read_text(encoding="utf-8")) | scores
    part = path.with_suffix(".part")
    part.write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)


def check_finite(step, row):
    """Raise NonFiniteLoss where the loss or the gradient is not a number."""
    for key in ("train/loss", "train/grad_norm"):
        if not math.isfinite(row[key]):
            parts = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if k.endswith("/loss"))
            raise NonFiniteLoss(
                f"step {step}: {key} is {row[key]} ({parts}); nothing of it was saved. "
                "Lower the learning rate, "
                "clip gradients (config.optim.clip), or look at the data of that step"
            )


def warn_of_collapse(step, row):
    """Say in the log where an adversarial game's representations have become one point or line."""
    for key in [k for k in row if k.endswith("/collapsed") and row[k]]:
        name = key.removesuffix("/collapsed")
        log.warning(
            "step %d: the representations of %s have collapsed (spread %.2g, effective rank %.2g): "
            "lower its weight, or give the critic more steps (config.optim.critic.steps) or a "
            "penalty (r1)",
            step,
            name,
            row[f"{name}/spread"],
            row[f"{name}/rank"],
        )


class Clock:
    """Samples a second, share of time waiting for data, and model FLOPs utilisation, since the last
    reading.
    """

    def __init__(self, batch_size, flops_per_step):
        self._batch_size, self._flops = batch_size, flops_per_step
        self.restart()

    def restart(self):
        """Forget what was measured: what comes next is not a training step."""
        self._began, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def tick(self, waited):
        """Count a step that waited so many seconds for its batch."""
        self._steps += 1
        self._waited += waited

    def read(self):
        """Metrics since the last reading."""
        seconds = time.perf_counter() - self._began
        if not self._steps or seconds <= 0:
            return {}
        row = {
            "train/samples_per_s": self._batch_size * self._steps / seconds,
            "train/data_wait": self._waited / seconds,
        }
        peak = flops.peak_flops()
        if peak and self._flops:
            row["train/mfu"] = self._flops * self._steps / seconds / peak
        self.restart()
        return row
