"""Configs: read from a Python file, changed on the command line, stored as JSON (data only)."""

import ast
import difflib
import importlib.machinery
import json
import os
import pathlib
import re
import sys

import numpy as np
from ml_collections import ConfigDict

from multimodal.errors import UserError

# Keys, with their defaults, that stored configs may lack.
NEWER = (("data.augment", {}), ("modalities.*.stem", "patch"))
# Keys that change how a run goes, not what it computes: they may differ when it is resumed.
FREE_KEYS = (
    "log_every",
    "save_every",
    "keep",
    "data.threads",
    "data.workers",
    "mesh.",
    "eval_every",
    "eval.",
    "data.eval_splits",
    "skip.most",
    "hang_seconds",
    "check_replicas_every",
)
FREE_ENDS = (".remat", ".unroll")  # and of any stack of layers
# Of a modality: a number, or (down, across).
PAIRS = ("size", "host_size", "patch")
# Parts that every run's config has; the code that reads one relies on them.
_PARTS = ("modalities", "model")


def load_config(spec: str, overrides=()) -> ConfigDict:
    """The config of 'configs/NAME.py[:ARG]', with 'a.b.c=value' overrides.

    The file is Python and is executed. Raises UserError for a missing file, an unknown key (with
    the nearest real one) and a value of another type.
    """
    path, _, arg = spec.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"--config: no file {path!r}{_near_file(path)}")
    config = _run_file(path, arg)
    return apply_overrides(config, overrides).lock()


def _run_file(path, arg):
    """get_config(arg) of a Python file. Raises UserError for what goes wrong in it."""
    module_spec = importlib.util.spec_from_file_location("config_file", path)
    if module_spec is None:
        raise UserError(f"--config: {path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        return module.get_config(arg) if arg else module.get_config()
    except UserError:
        raise
    except Exception as e:  # whatever a user's file raises, it is that file's to mend
        at = e.__traceback__
        while at.tb_next:
            at = at.tb_next
        line = getattr(e, "lineno", None) or at.tb_lineno
        raise UserError(f"--config: {path}, line {line}: {type(e).__name__}: {e}") from e


def apply_overrides(config, overrides):
    """Change a config by 'a.b.c=value' strings, in place. Raises UserError as load_config does."""
    for override in overrides:
        key, eq, text = override.partition("=")
        if not eq:
            raise UserError(f"--config.{key}: give a value, --config.{key}=VALUE")
        _override(config, key, text)
    return config


def _near_file(path):
    """' (did you mean X?)' for the file beside it, or in configs/, whose name is closest; or ''."""
    given, files = pathlib.Path(path), {}
    for folder in (pathlib.Path("configs"), given.parent):
        files |= {p.stem: p for p in folder.glob("[!_]*.py")} if folder.is_dir() else {}
    close = difflib.get_close_matches(given.stem, files, n=1)
    return f" (did you mean {files[close[0]]}?)" if close else ""


def _override(config, key, text):
    flat = flatten(config)
    node = config
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node, ConfigDict) or part not in node:
            _unknown(key, flat)
        node = node[part]
    if not isinstance(node, ConfigDict):
        _unknown(key, flat)
    # Arguments of an objective, a schedule or a source are the function's own: it checks their
    # names.
    is_open = parents and (
        parents[0] == "objectives"
        or "kwargs" in parents
        or parents[:2] == ["data", "augment"]
        or "schedule" in node
    )
    if last not in node and not is_open:
        _unknown(key, flat)
    value = _parse(text)
    with node.unlocked(), node.ignore_type():
        if isinstance(node.get(last), str) and not isinstance(value, str):
            value = text  # a string that reads like something else: none, 1e3, (a)
        node[last] = _coerce(key, value, node[last]) if last in node else value


def _unknown(key, flat):
    close = difflib.get_close_matches(key, flat, n=1, cutoff=0.3)
    hint = f"; did you mean --config.{close[0]}?" if close else ""
    raise UserError(f"--config.{key}: there is no such key{hint}")


def _parse(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _coerce(key, value, old):
    """value in the type of what stands there. Raises UserError for another kind of thing."""
    is_schedule = isinstance(value, dict) and "schedule" in value
    if old is None or (is_schedule and isinstance(old, (int, float)) and not isinstance(old, bool)):
        return value
    if isinstance(old, ConfigDict):
        return _coerce_dict(key, value, old)
    if isinstance(old, str):
        return "" if value is None else str(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if key.startswith("modalities.") and key.rsplit(".", 1)[-1] in PAIRS:
        if isinstance(value, tuple | list) and list(map(type, value)) == [int, int]:
            return tuple(value)
        if isinstance(value, int):
            return value
    if isinstance(old, tuple):
        if isinstance(value, str):
            value = [v for v in value.split(",") if v]
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if type(old) is not type(value):
        raise UserError(f"--config.{key}: {value!r} is {_a(value)}, wanted {_a(old)} like {old!r}")
    return value


def _a(value):
    """'an int' of 3, 'a str' of 'x'."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _coerce_dict(key, value, old):
    """A dict for a part of the config; a schedule may also become a number."""
    if "schedule" in old and isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise UserError(f"--config.{key}: {value!r} is no dict; change one key: --config.{key}.KEY")
    is_open = "schedule" in old or "kwargs" in key
    is_open = is_open or key.startswith(("objectives", "data.augment"))
    unknown = [k for k in value if k not in old] if not is_open else []
    if unknown:
        _unknown(f"{key}.{unknown[0]}", [f"{key}.{k}" for k in old])
    return ConfigDict(value if is_open else {**old.to_dict(), **value})


def pair(value) -> tuple[int, int]:
    """(n, n) of a number n; two numbers, (down, across), as they are."""
    down, across = (value, value) if np.ndim(value) == 0 else value
    return int(down), int(across)


def flatten(config, prefix="") -> dict:
    """{'a.b.c': value} of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and len(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save_config(config, workdir):
    """Write workdir/config.json, at no moment half of it."""
    path = pathlib.Path(workdir, "config.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name("config.json.part")
    part.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_config(workdir) -> ConfigDict:
    """The config stored in a workdir. Raises UserError where there is none that can be read, and
    for one that names code in that folder: what somebody sent is data.
    """
    path = pathlib.Path(workdir, "config.json")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise TypeError(f"a {type(stored).__name__}, not an object")
        for part in _PARTS:
            if not isinstance(stored.get(part), dict):
                raise TypeError(f"its part {part!r} is missing or no object")
        for name, tower in stored["modalities"].items():
            if not isinstance(tower, dict) or not {"encoder", "transform"} <= tower.keys():
                raise TypeError(f"modalities.{name} has no encoder or transform")
        config = ConfigDict(_tuples(stored))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {workdir} is not a workdir of train.py") from None
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path}: not a config of train.py ({e!s:.150})") from None
    _check_imports(path, flatten(config))
    return config


def _check_imports(path, flat):
    """Raise UserError where a stored config has an import path that leads into its own folder."""
    folder = path.resolve().parent
    for key, value in flat.items():
        # An objective's name is its function's.
        for word in (*key.split("."), *_texts(value)):
            module = word.partition(":")[0] if ":" in word else ""
            if module and any(folder in p.parents or p == folder for p in _places(module)):
                raise UserError(
                    f"{path}: {key} names {word!r}, code in the run's own folder, which is data: "
                    "put the module elsewhere, on PYTHONPATH"
                )


def _texts(value):
    """All texts in a value, however deep in lists and dicts, their keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _texts(inner)
    elif hasattr(value, "items"):
        for key, inner in value.items():
            yield from (*_texts(key), *_texts(inner))


def _places(module):
    """Where Python would look for a module, or for a package above it; nothing is imported."""
    for root in map(pathlib.Path, sys.path):
        try:
            inner = (root / module.replace(".", "/")).resolve()
        except (OSError, ValueError):  # no path at all
            continue
        for suffix in ("", *importlib.machinery.all_suffixes()):
            place = inner.with_name(inner.name + suffix) if inner.name else inner
            if place.exists():
                yield place


def _tuples(value):
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_same(config, stored):
    """Raise UserError that names the keys in which a run's config differs from the stored one."""
    new, old = (_plain(flatten(c)) for c in (config, stored))
    changed = [
        k
        for k in sorted(new.keys() | old.keys())
        if new.get(k, "absent") != old.get(k, "absent")
        and not (k.startswith(FREE_KEYS) or k.endswith(FREE_ENDS))
    ]
    if changed:
        told = ", ".join(
            f"{k} ({old.get(k, 'absent')} -> {new.get(k, 'absent')})" for k in changed[:8]
        )
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        longer = "; to train longer, start a new run from it: --config.init.path=WORKDIR"
        raise UserError(
            f"the workdir holds a run with another config: {told}{more}; take another --workdir or "
            f"the old values{longer if 'steps' in changed else ''}"
        )


def _plain(flat):
    """As JSON has it, without the default of a key that runs may be older than."""
    plain = {
        k: _tuples(json.loads(json.dumps(v.to_dict() if hasattr(v, "to_dict") else v)))
        for k, v in flat.items()
    }
    any_tower = re.compile(r"^modalities\.[^.]+\.")
    return {k: v for k, v in plain.items() if (any_tower.sub("modalities.*.", k), v) not in NEWER}
