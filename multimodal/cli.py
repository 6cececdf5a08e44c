"""What train.py and eval.py share: arguments, exit codes, one clear line for bad input."""

import argparse
import difflib
import gc
import logging
import os
import sys
import time
import traceback

from multimodal import paths
from multimodal.errors import Preempted, Unhealthy, UserError

BEGAN = time.perf_counter()  # near enough to the start of the program

# What each argument means, and its default.
ARGUMENTS = {
    "config": ("configs/NAME.py[:ARG], a Python file that is executed", None),
    "workdir": ("folder of the run", None),
    "step": ("checkpoint: a step, 'latest' or 'best'", "latest"),
    "evals": ("evaluators, comma-separated; default: the config's", ""),
    "profile": ("trace three steps, or START:STOP, into the workdir's profile/", ""),
    "plan": ("tpu:v5e:16x16, gpu:h100:8x8, ...: tell what training there would take; no run", ""),
    "plan_json": ("file for the plan's numbers", ""),
    "plan_memory": ("tell whether it fits and nothing else, sooner", ""),
    "plan_examples": ("training examples, for the hours of an epoch; default: the data's", "0"),
}
# Who takes which optional ones.
TRAINING = ("profile", "plan", "plan_json", "plan_memory", "plan_examples")
EVALUATION = ("step", "evals")


def parse_args(doc, required, argv):
    """Known arguments, and `overrides`: the 'key=value' of each --config.key=value.

    `--data SOURCE` is short for --config.data.source; with `--plan` no workdir is needed. Raises
    UserError for anything else.
    """
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False, exit_on_error=False)
    extra = TRAINING if "config" in required else EVALUATION
    names = [n for n in ARGUMENTS if n in required or n in extra]
    for name in names:
        text, default = ARGUMENTS[name]
        bare = dict(nargs="?", const="auto") if name in ("profile", "plan_memory") else {}
        parser.add_argument(f"--{name}", help=text, default=default, **bare)
    if "config" not in required:
        parser.add_argument("--data", help="another source, as config.data.source", default="")
    try:
        args, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as e:
        raise UserError(str(e)) from None
    args.overrides = []
    if getattr(args, "data", ""):
        args.overrides.append(f"data.source={args.data}")
    rest = list(rest)
    while rest:
        item = rest.pop(0)
        if not item.startswith("--config."):
            near = _nearest_argument(item, [*names, "config.", "data"], args)
            raise UserError(f"unknown argument {item}{near}")
        key = item.removeprefix("--config.")
        if "=" not in key and rest and not rest[0].startswith("--"):
            key += "=" + rest.pop(0)
        args.overrides.append(key)
    for name in required:
        if not getattr(args, name) and not (name == "workdir" and getattr(args, "plan", "")):
            raise UserError(f"--{name} is missing; usage: {doc.strip().split(': ', 1)[-1]}")
    paths.must_be_local(args.workdir, "--workdir")
    return args


def _nearest_argument(item, names, args):
    """' (did you mean --X?)' for the argument, or else the config's key, closest to this; or ''."""
    word = item.split("=")[0].lstrip("-")
    keys = {}  # by their last part; of two the one with fewer parts
    for key in sorted(_keys(args), key=lambda k: -k.count(".")):
        keys |= {key: f"config.{key}", key.rpartition(".")[2]: f"config.{key}"}
    close = [keys[word]] if word in keys else difflib.get_close_matches(word, names, n=1)
    close = close or [keys[k] for k in difflib.get_close_matches(word, keys, n=1)]
    return f" (did you mean --{close[0]}?)" if close else ""


def _keys(args):
    """Keys, and parts, of the config that is trained or evaluated; none where it cannot be read."""
    from multimodal.config import flatten, load_config, read_config

    try:
        named = getattr(args, "config", None)
        flat = flatten(load_config(named) if named else read_config(args.workdir or "."))
    except UserError:
        return set()
    return {k.rsplit(".", n)[0] for k in flat for n in range(k.count(".") + 1)}


def run_command(main, doc, required):
    """Run main(args) as a program. Exit code 0; with one line: 2 for a UserError, 1 for a run that
    must not go on, 75 for one that was asked to end and is saved, 130 after Ctrl-C.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("absl", "jax", "orbax", "grain", "matplotlib", "tensorflow_datasets"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    args = None
    try:
        args = parse_args(doc, required, sys.argv[1:])
        mark_flags_as_parsed()
        use_compilation_cache()
        collect_garbage_seldom()
        main(args)
    except UserError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        leave(2)
    except Preempted as e:
        print(
            f"asked to end (SIGTERM): {str(e) or 'all is saved'}; the same command goes on",
            file=sys.stderr,
        )
        sys.exit(75)
    except Unhealthy as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        leave(1)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as e:
        if isinstance(e, OSError) and e.filename is not None:  # a file that the user named
            where = "--workdir: " if args and _touches(args.workdir, e.filename) else ""
            print(f"error: {where}{e.strerror}: {e.filename}", file=sys.stderr)
            leave(2)
        traceback.print_exc()
        leave(1)


def _touches(workdir, filename):
    """Whether a file is a workdir or above it: what is in one is told by its own path."""
    if not workdir or not isinstance(filename, str | bytes | os.PathLike):
        return False
    both = [os.path.abspath(os.fsdecode(p)) for p in (workdir, filename)]
    return os.path.commonpath(both) == both[1]


def leave(code):
    """Exit; where there are other processes, also if they go on."""
    if "multimodal.training.distributed" in sys.modules:  # without it there are none
        from multimodal.training import distributed

        distributed.leave(code)
    sys.exit(code)


def collect_garbage_seldom():
    """Let Python look for cycles of garbage every 50,000 new objects instead of every 700: the
    objects that imports and tracing leave are walked each time, 7 % of the time to the first step.
    """
    gc.set_threshold(50_000, 5, 5)


def mark_flags_as_parsed():
    """grain reads absl flags, which nothing here parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def use_compilation_cache():
    """Keep compiled programs in the user's cache folder: a resumed run starts in seconds."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "multimodal", "jax"))
