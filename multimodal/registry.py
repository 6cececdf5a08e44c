"""Look a name up in a registry, or import what `package.module:name` points to."""

import difflib
import importlib

from multimodal.errors import UserError


def nearest(name, known) -> str:
    """' (did you mean X?)' for the known name closest to this one, or ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def lookup(registry: dict, name: str, where: str):
    """The entry of that name, or the object at the import path `package.module:object`.

    Raises UserError that names `where` and the nearest known name.
    """
    if name in registry:
        return registry[name]
    if ":" not in name:
        raise UserError(
            f"{where}: unknown name {name!r}{nearest(name, registry)}; "
            f"known: {', '.join(sorted(registry))}"
        )
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise UserError(f"{where}: cannot import {name!r}: {e}") from None
