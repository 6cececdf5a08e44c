"""Starting from a run of our own: pre-trained parameters into a model with other heads."""

import contextlib
import logging
import os
import pathlib
import re
import tempfile

from flax.traverse_util import flatten_dict, unflatten_dict

from multimodal import paths
from multimodal.errors import UserError
from multimodal.training.sharding import placed

log = logging.getLogger(__name__)
# Heads that a task may add or leave.
NEW = r"(classifier_|project_joint|critic|discriminator|decoder|match_head|mlm_head|logit_bias).*"


@contextlib.contextmanager
def local_copy(path):
    """A run's folder, a checkpoint in it or a file of weights, for as long as the context lasts.

    Of a URL a copy in a temporary folder: the checkpoint (the newest of a run) with the run's
    config and tokenizer, or the weights with the config beside them. A local path is itself. Raises
    UserError where there is nothing of the kind.
    """
    if not paths.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            base, names = _wanted(paths.absolute(path))
            for name in names:
                paths.download(paths.join(base, name), os.path.join(folder, name))
        except OSError as e:
            raise UserError(f"{path}: {e.strerror}: {e.filename}") from None
        yield os.path.join(folder, names[-1])


def _wanted(url):
    """(folder, what of it to copy) for a URL; the last is what the copy is to be used by."""
    from multimodal.interop.files import CONFIGS, NAMES

    def there(base, names):
        return [n for n in names if paths.is_file(paths.join(base, n))]

    base, steps = _steps(url)
    if steps:
        beside = there(base, ("config.json", "tokenizer.json", "classes.json"))
        return base, [*beside, f"checkpoints/{steps[-1]}"]
    base, name = url.rpartition("/")[::2] if paths.is_file(url) else (url, "")
    weights = [name] if name else there(base, NAMES)[:1]
    if not weights:
        raise UserError(f"{url}: neither a run with checkpoints nor a file of weights")
    return base, [*there(base, CONFIGS), *weights]


def _steps(url):
    """(a run's folder, steps, ascending) of the URL of a folder or of one checkpoint in it."""
    if one := re.fullmatch(r"(.+)/checkpoints/(\d+)", url):
        return one[1], [one[2]]
    names = [] if paths.is_file(url) else paths.names(paths.join(url, "checkpoints"))
    return url, sorted((s for s in names if s.isdigit()), key=int)


def is_run(path) -> bool:
    """Whether a path is a run's folder or one checkpoint in it."""
    folder, _ = _split(path)
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _split(path):
    """(a run's folder, step) of the folder or of one checkpoint in it."""
    path = pathlib.Path(path).expanduser()
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, path.name
    return path, "latest"


def tokenizer_of(path) -> str:
    """Where the tokenizer lies of the run that a path or URL names, or a checkpoint in it; '' where
    it names no run, or one without texts.
    """
    if not path:
        return ""
    if paths.is_remote(path):
        folder, run = _steps(paths.absolute(path))
        found = paths.join(folder, "tokenizer.json")
    else:
        found, run = str(_split(path)[0] / "tokenizer.json"), is_run(path)
    return found if run and paths.is_file(found) else ""


def from_run(params, init):
    """Parameters with those of a run's checkpoint put in.

    A new task's heads (classifiers, critics) may be missing there, and so may what
    init.allow_missing names; of the run's, heads and what init.allow_unused names may stay unused.
    The tokenizer must be the same; see tokenizer_of.

    Args:
      params: the model's initial parameters; init: config.init.
    Raises: UserError for other shapes, and for parameters that only one side has.
    """
    from multimodal.training.checkpoint import restore_params

    folder, step = _split(init.path)
    step, found, _ = restore_params(folder, step, host=True)
    mine, theirs = flatten_dict(params, sep="/"), flatten_dict(found, sep="/")

    def unknown(names, allowed):
        patterns = (NEW, *allowed)
        return sorted(n for n in names if not any(re.fullmatch(p, n) for p in patterns))

    for problem, names, key in (
        ("lacks", unknown(mine.keys() - theirs, init.allow_missing), "allow_missing"),
        ("has unused", unknown(theirs.keys() - mine, init.allow_unused), "allow_unused"),
    ):
        if names:
            raise UserError(
                f"config.init.path: {folder} {problem} {', '.join(names[:4])}"
                f"{' ...' if len(names) > 4 else ''}: make the models alike, or name them in "
                f"config.init.{key} (regexes)"
            )
    shared = mine.keys() & theirs
    for name in sorted(shared):
        if mine[name].shape != theirs[name].shape:
            raise UserError(
                f"config.init.path: {name} is {list(theirs[name].shape)} in {folder}, "
                f"{list(mine[name].shape)} in this model: make the sizes alike"
            )
    log.info(
        "%s, step %s: %d arrays read, %d new", folder, step, len(shared), len(mine) - len(shared)
    )
    return unflatten_dict(mine | {k: placed(theirs[k], mine[k]) for k in shared}, sep="/")
