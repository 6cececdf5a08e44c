"""The training loop: batches in, steps, logs, checkpoints, evaluations."""

import dataclasses
import json
import logging
import os
import pathlib
import time

import jax
from ml_collections import ConfigDict

from multimodal.chips import chip_of
from multimodal.config import check_same, read_config, save_config
from multimodal.data.class_names import write_class_names
from multimodal.data.tokenizer import Tokenizer
from multimodal.errors import Preempted, UserError
from multimodal.nn.model import Model
from multimodal.training import flops, inputs, setup
from multimodal.training.checkpoint import (
    Checkpoints,
    check_tokenizer,
    read_scores,
    steps_of,
    tokenizer_digest,
)
from multimodal.training.clock import Advice, Clock, Startup
from multimodal.training.distributed import meet
from multimodal.training.goodput import Goodput
from multimodal.training.health import Watch, check_replicas, warn_of_collapse
from multimodal.training.logging import MetricLogger
from multimodal.training.optim import learning_rate
from multimodal.training.preemption import Preemption
from multimodal.training.preflight import preflight
from multimodal.training.profile import Profile, steps_to_trace
from multimodal.training.sharding import axes_of, check_batch, make_mesh
from multimodal.training.step import lower_step, make_step
from multimodal.training.validate import validate
from multimodal.training.watchdog import Watchdog
from multimodal.training.xla_flags import compiler_options

log = logging.getLogger(__name__)


def train(config, workdir, profile="", began=None):
    """Train to config.steps, resuming from the workdir's newest checkpoint; returns the last
    metrics.

    Args:
      profile: steps to trace, see profile.py; '': none.
      began: time.perf_counter() when the program began; None: now.
    Raises: UserError for a config, data or workdir that cannot be trained with; Preempted after
      SIGTERM, when the state is saved; Unhealthy where it takes a new start.
    """
    began = time.perf_counter() if began is None else began
    startup, workdir = Startup(began), pathlib.Path(workdir)
    validate(config)
    steps_to_trace(profile, 1, config.steps)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir: {workdir} is a file, wanted a folder")
    # A run that saved nothing, because its data were wrong, say, leaves nothing to go on from.
    resumed = (workdir / "config.json").exists() and bool(steps_of(workdir))
    stored = read_config(workdir) if resumed else None
    inputs.settle(config, stored)
    if resumed:
        check_same(config, stored)
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = make_mesh(**axes_of(config))
    check_batch(config.batch_size, mesh, config.micro_batches, jax.process_count())
    source = inputs.get_source(config, config.data.train_split)
    tokenizer = inputs.get_tokenizer(config, workdir if resumed else None, source)
    preflight(config, tokenizer)
    pipeline = inputs.get_pipeline(config, source, tokenizer)
    goals = setup.get_objectives(config, tokenizer)
    with jax.set_mesh(mesh):
        goodput = Goodput(workdir, began, active=jax.process_index() == 0)
        checkpoints = Checkpoints(workdir, config.keep, config.eval.best, config.keep_best)
        try:
            done = checkpoints.steps()
            goodput.resume(anything=bool(done))
            model, tx, state = setup.build_state(config, mesh, import_weights=not done)
            if jax.process_index() == 0 and not resumed:
                clear(workdir)
                if tokenizer is not None:
                    tokenizer.save(workdir / "tokenizer.json")
                write_class_names(workdir, config, source)
                save_config(config, workdir)  # last: it says that the folder is complete
            about = about_run(config, workdir, source)
            if done:
                with goodput.of("restore"):
                    state, meta = checkpoints.restore(state)
                check_about(meta, about, workdir)
                log.info("resumed from step %d", int(state.step))
            if int(state.step) < config.steps and jax.process_index() == 0:
                tell(source, state, mesh)
            run = Run(config, workdir, mesh, model, tokenizer, checkpoints, startup, goodput, about)
            return run.steps(state, make_step(config, model, goals, tx), pipeline, profile)
        finally:
            checkpoints.close()


def clear(workdir):
    """Remove what a start that saved nothing has left, and this run may not write."""
    for name in ("tokenizer.json", "classes.json"):
        (workdir / name).unlink(missing_ok=True)


def tell(source, state, mesh):
    """Say what is trained on what, before the long silence of compiling."""
    numbers = sum(x.size for x in jax.tree.leaves(state.params))
    kind = mesh.devices.flat[0].device_kind
    log.info(
        "%s: %s examples; %s parameters; %d x %s; compiling ...",
        getattr(source, "name", type(source).__name__),
        f"{len(source):,}",
        f"{numbers:,}",
        mesh.devices.size,
        kind,
    )


@dataclasses.dataclass
class Run:
    """One run of the loop; holds what does not change from step to step.

    about: what its checkpoints say beside the state, see about_run.
    """

    config: ConfigDict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    model: Model
    tokenizer: Tokenizer | None
    checkpoints: Checkpoints
    startup: Startup
    goodput: Goodput
    about: dict

    def __post_init__(self):
        c = self.config
        rate = learning_rate(c)
        self.lr = rate if isinstance(c.optim.lr, int | float) else jax.jit(rate)
        self.advice, self.watch = Advice(c), Watch(c.skip.most)
        self.watchdog, self.preemption = Watchdog(c.hang_seconds), Preemption()

    def steps(self, state, step_fn, pipeline, profile=""):
        """Run from state.step to config.steps."""
        c, first, metrics = self.config, int(state.step), {}
        trace = Profile(steps_to_trace(profile, first + 1, c.steps), self.workdir)
        logs = MetricLogger(self.workdir, c.steps, first, active=jax.process_index() == 0)
        # Before this job can have written it: all processes must find the same.
        evaluated = pathlib.Path(self.workdir, "eval", f"{c.steps}.json").exists()
        batches = pipeline.iterate(first)
        clock = Clock(batches, self.mesh, c.batch_size)
        try:
            with logs as logger, trace, self.preemption, self.watchdog:
                if first < c.steps:
                    self.watchdog.feed()
                    batch = clock.fetch()
                    self.watchdog.stop()
                    step_fn = self._compile(step_fn, state, batch, clock)
                self.goodput.begin("step")
                for step in range(first + 1, c.steps + 1):
                    self.watchdog.feed()
                    with trace.step(step):
                        state, metrics = step_fn(state, batch)
                    clock.dispatched(metrics)
                    batch = clock.fetch() if step < c.steps else None  # while the step runs
                    if step == first + 1:
                        self.startup.first_step(metrics)
                    logger.tick(step)
                    if step % c.log_every == 0 or step == c.steps:
                        logger.write(step, self._row(step, metrics, clock))
                    if trace.done(step, metrics):
                        clock.restart()
                    self._after(step, state, metrics, clock, logger)
                if first == c.steps and not evaluated:  # killed between saving and evaluating
                    self.evaluate(c.steps, state, logger)
        finally:
            batches.close()
            clock.close()
        return {k: float(v) for k, v in metrics.items()}

    def _compile(self, step_fn, state, batch, clock):
        """The compiled step, for arrays like these."""
        began = time.perf_counter()
        self.goodput.begin("compile")
        chip = chip_of(jax.devices()[0].device_kind)
        options = compiler_options(jax.default_backend(), chip.name if chip else "")
        lowered = lower_step(step_fn, state, batch)
        clock.prepare()  # while the compiler works
        compiled = lowered.compile(compiler_options=options)
        self.startup.compiled(time.perf_counter() - began)
        meet("compiled")
        if flops.peak_flops():  # counting them takes half a second, and means nothing elsewhere
            clock.flops = flops.of_step(self.config, batch)
        clock.restart()
        return compiled

    def _row(self, step, metrics, clock):
        row = clock.read()
        self.advice.look(row)
        self.goodput.waited(clock.taken())
        row = {k: float(v) for k, v in jax.device_get(metrics).items()} | row
        # Its schedule counts updates: a step that was skipped is none, and would have had the next.
        missed = row["train/skipped"] - (row["train/skipped_in_row"] > 0)
        row["train/lr"] = float(self.lr(int(step - 1 - missed)))
        row |= self.startup.row(last=step == self.config.steps) | self.goodput.row()
        self.watch.look(step, row)
        warn_of_collapse(step, row)
        return row

    def _after(self, step, state, metrics, clock, logger):
        """Save and evaluate where the config says so; neither counts as training time."""
        c = self.config
        evaluate = step == c.steps or (c.eval_every and step % c.eval_every == 0)
        asked = self.preemption.asked(step)
        if c.check_replicas_every and step % c.check_replicas_every == 0:
            check_replicas(step, state)
        if not (evaluate or asked or step % c.save_every == 0):
            return
        self.watch.look(step, {k: float(v) for k, v in jax.device_get(metrics).items()})
        self.goodput.waited(clock.taken())
        with self.goodput.of("save"):
            self.checkpoints.save(state, self.about)
        self.goodput.saved()
        if asked and step < c.steps:
            raise Preempted(f"saved at step {step}")
        if evaluate:
            self.evaluate(step, state, logger)
            self.goodput.write()
        clock.restart()

    def evaluate(self, step, state, logger):
        """Evaluate a state: eval/STEP.json, and the headlines into the log; nothing where the
        config names no evaluator.
        """
        from multimodal.evals import evaluate, headline

        if not self.config.eval.names:
            return
        meet("evaluate")
        self.watchdog.stop()
        params = state.ema if self.config.eval.use_ema else state.params
        with self.goodput.of("evaluate"), self.preemption.at_once():
            scores = evaluate(self.config, self.model, params, self.tokenizer, self.mesh)
        if jax.process_index() == 0:
            write_scores(self.workdir, step, scores)
            logger.write(step, {f"eval/{k}": v for k, v in headline(scores).items()})
        best = self.config.eval.best
        if best and best not in scores:
            log.warning("config.eval.best: no metric %r; there are %s", best, ", ".join(scores))


def write_scores(workdir, step, scores):
    """Write eval/STEP.json, at no moment half of it; other scores of that step stay."""
    path = pathlib.Path(workdir, "eval", f"{step}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = read_scores(workdir, step) | scores
    part = path.with_suffix(".part")
    part.write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(part, path)


def about_run(config, workdir, source) -> dict:
    """What a checkpoint's JSON says beside fingerprints: with the step, where in the data it is."""
    data = {"examples": len(source), "batch_size": config.batch_size, "seed": config.seed}
    return {"data": data, "tokenizer": tokenizer_digest(workdir)}


def check_about(meta, about, workdir):
    """Raise UserError where data or tokenizer are not those of the run's checkpoint."""
    check_tokenizer(workdir, meta)
    if meta["data"] != about["data"]:
        raise UserError(
            f"{workdir}: the data is not the run's: {meta['data']} then, {about['data']} now; "
            "its batches would be others: put the data back, or take another --workdir"
        )
