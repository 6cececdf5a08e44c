"""Configs: read from a Python file, changed on the command line, stored as JSON (data only)."""

import ast
import difflib
import importlib.util
import json
import os
import pathlib

from ml_collections import ConfigDict

from multimodal.errors import UserError

# Keys that change how a run goes, not what it computes: they may differ when it is resumed.
FREE_KEYS = ("log_every", "save_every", "keep", "data.threads", "mesh.", "eval_every", "eval.")


def load_config(spec: str, overrides=()) -> ConfigDict:
    """The config of 'configs/NAME.py[:ARG]', with 'a.b.c=value' overrides.

    The file is Python and is executed. Raises UserError for a missing file, an unknown key (with
    the nearest real one) and a value of another type.
    """
    path, _, arg = spec.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"--config: no file {path!r}{_near_file(path)}")
    module_spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"--config: {path} has no function get_config(arg)")
    config = module.get_config(arg) if arg else module.get_config()
    return apply_overrides(config, overrides).lock()


def apply_overrides(config, overrides):
    """Change a config by 'a.b.c=value' strings, in place. Raises UserError as load_config does."""
    for override in overrides:
        key, eq, text = override.partition("=")
        if not eq:
            raise UserError(f"--config.{key}: give a value, --config.{key}=VALUE")
        _override(config, key, text)
    return config


def _near_file(path):
    folder = pathlib.Path(path).parent
    names = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
    close = difflib.get_close_matches(pathlib.Path(path).name, names, n=1)
    return f" (did you mean {folder / close[0]}?)" if close else ""


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
    is_open = parents and (parents[0] == "objectives" or "kwargs" in parents or "schedule" in node)
    if last not in node and not is_open:
        _unknown(key, flat)
    value = _parse(text)
    with node.unlocked(), node.ignore_type():
        node[last] = _coerce(key, value, node[last]) if last in node else value


def _unknown(key, flat):
    close = difflib.get_close_matches(key, flat, n=1, cutoff=0.3)
    hint = f"; did you mean --config.{close[0]}?" if close else ""
    raise UserError(f"--config.{key}: there is no such key{hint}")


def _parse(text):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _coerce(key, value, old):
    """value in the type of what stands there. Raises UserError for another kind of thing."""
    if old is None or value is None:
        return value
    if isinstance(old, ConfigDict) and isinstance(value, dict):
        return ConfigDict(value)
    if isinstance(old, ConfigDict) and isinstance(value, (int, float)) and "schedule" in old:
        return value
    if isinstance(old, str):
        return str(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, tuple):
        return tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if type(old) is not type(value):
        raise UserError(
            f"--config.{key}: {value!r} is a {type(value).__name__}, wanted a "
            f"{type(old).__name__} like {old!r}"
        )
    return value


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
    """The config stored in a workdir. Raises UserError where there is none that can be read."""
    path = pathlib.Path(workdir, "config.json")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise TypeError(f"a {type(stored).__name__}, not an object")
        return ConfigDict(_tuples(stored))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {workdir} is not a workdir of train.py") from None
    except (OSError, ValueError, TypeError) as e:
        raise UserError(f"{path}: not a config ({e})") from None


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
        if new.get(k, "absent") != old.get(k, "absent") and not k.startswith(FREE_KEYS)
    ]
    if changed:
        told = ", ".join(
            f"{k} ({old.get(k, 'absent')} -> {new.get(k, 'absent')})" for k in changed[:8]
        )
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise UserError(
            f"the workdir holds a run with another config: {told}{more}; "
            "take another --workdir or the old values"
        )


def _plain(flat):
    return {
        k: _tuples(json.loads(json.dumps(v.to_dict() if hasattr(v, "to_dict") else v)))
        for k, v in flat.items()
    }
