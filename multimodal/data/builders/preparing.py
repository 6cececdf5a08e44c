"""Preparing our own TFDS builders on first use, safe against kills and concurrent processes."""

import contextlib
import importlib
import os
import shutil
import tempfile
import time

from multimodal.data.builders import BUILDERS
from multimodal.errors import UserError

_STALE_SECONDS = 3600


def own_builder(name, data_dir):
    """The builder of ours called `name`, prepared under `data_dir` (default: ./data)."""
    module, cls = BUILDERS[name].split(":")
    make = getattr(importlib.import_module(module), cls)
    data_dir = os.path.abspath(os.path.expanduser(data_dir or "data"))
    builder = make(data_dir=data_dir, file_format="array_record")
    if not os.path.exists(os.path.join(builder.data_path, "dataset_info.json")):
        _prepare(make, data_dir, os.fspath(builder.data_path))
        builder = make(data_dir=data_dir, file_format="array_record")
    return builder


def _prepare(make, data_dir, target):
    """Write a whole set into a temporary folder, then rename it to `target`.

    A kill leaves only the temporary folder; of two processes the first to rename wins.
    """
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _remove_stale(data_dir)
        work = tempfile.mkdtemp(prefix=".preparing-", dir=data_dir)
    except OSError as e:
        raise UserError(
            f"cannot write data to {data_dir!r} ({e.strerror}); give another folder as data_dir"
        ) from e
    try:
        with _quiet():
            built = make(data_dir=work, file_format="array_record")
            built.download_and_prepare(file_format="array_record")
        with contextlib.suppress(OSError):
            os.rename(os.fspath(built.data_path), target)
        if not os.path.exists(os.path.join(target, "dataset_info.json")):
            raise UserError(f"{target!r} exists but is no prepared data set; remove it")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_stale(data_dir):
    """Remove what killed processes left, told from living ones by age."""
    for entry in os.scandir(data_dir):
        if entry.name.startswith(".preparing-"):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _quiet():
    """Without TFDS's own progress bars, which would garble those of a training run."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        yield
