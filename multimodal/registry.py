"""Look a name up in a registry, or import what `package.module:name` points to."""

import difflib
import importlib
import inspect

from multimodal.errors import UserError


def nearest(name, known) -> str:
    """' (did you mean X?)' for the known name closest to this one, or ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def check_names(where: str, names, known, who: str):
    """Raise UserError for the first name that `who` does not take, with the nearest it does."""
    for name in names:
        if name not in known:
            raise UserError(
                f"{where}.{name}: there is no such key{nearest(name, known)}; "
                f"{who} takes {', '.join(known)}"
            )


def lookup(registry: dict, name: str, where: str, takes=(), kind=object):
    """The entry of that name, or the object at the import path `package.module:object`.

    Args:
      takes: names of the first arguments that the object of an import path must have.
      kind: class that it must be a subclass of. A config may be anybody's (it comes with a run's
        folder), and `os:system` is no part of this program.
    Raises: UserError that names `where` and the nearest known name.
    """
    if not isinstance(name, str):
        raise UserError(f"{where}: must be a name, not {name!r:.60}")
    if name in registry:
        return registry[name]
    if ":" not in name:
        raise UserError(
            f"{where}: unknown name {name!r}{nearest(name, registry)}; "
            f"known: {', '.join(sorted(registry))}"
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise UserError(f"{where}: cannot import {name!r}: {e}") from None
    if kind is not object and not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"{where}: {name!r} is no class of the kind {kind.__name__}")
    if _arguments(found)[: len(takes)] != list(takes):
        raise UserError(f"{where}: {name!r} must take ({', '.join(takes)}, ...) by these names")
    return found


def _arguments(found):
    """Names of an object's arguments; [] where it takes none or does not tell."""
    try:
        return list(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        return []
