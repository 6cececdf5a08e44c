"""Packages that only some data need."""

import importlib

from multimodal.errors import UserError


def require(module, extra, purpose):
    """The imported module, or a UserError that says which extra of this package brings it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as e:  # OSError: the package is there, its library is not.
        raise UserError(
            f"{purpose} needs the package {module!r} ({e!s:.80}): pip install -e '.[{extra}]'"
        ) from None
