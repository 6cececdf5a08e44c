"""Words made of a row's fields: 'a photo of a {label}', '{vendor}-*.tar', '{name.en}'."""

import string

from multimodal.errors import UserError
from multimodal.registry import nearest


class Template:
    """Text with fields in braces; dots lead into objects and lists (`name.en`, `slots.0`).

    A number may have a format after a colon: '{frame:05d}.png'.
    """

    def __init__(self, text, where):
        self.text, self.where = text, where
        if not isinstance(text, str):
            raise UserError(f"{where}: must be a text with fields in braces, not {text!r:.60}")
        try:
            self._parts = [part[:3] for part in string.Formatter().parse(text)]
        except ValueError as e:
            raise UserError(f"{where}: {text!r} is no template ({e})") from None
        self.fields = [name for _, name, _ in self._parts if name is not None]

    def fill(self, row, escape=str):
        """The text for a row (a dict), or None where the row lacks a field or has null there."""
        filled = self.fill_all(row, escape)
        if len(filled) > 1:
            raise UserError(f"{self.where}: {self.text!r} has {len(filled)} values in one row")
        return filled[0] if filled else None

    def fill_all(self, row, escape=str):
        """All texts for a row: a field that is a list gives one for each of its values."""
        texts = [""]
        for literal, name, form in self._parts:
            texts = [t + literal for t in texts]
            if name is not None:
                value = get_field(row, name)
                values = value if isinstance(value, list) else [value]
                words = [escape(self._word(v, name, form)) for v in values if v is not None]
                texts = [t + w for t in texts for w in words]
        return texts

    def _word(self, value, name, form):
        try:
            return format(value, form) if form else word(value, name, self.where)
        except (ValueError, TypeError) as e:
            raise UserError(f"{self.where}: {{{name}:{form}}} of {value!r:.40}: {e}") from None


def get_field(row, name):
    """The value of a field, or None where it is missing or null."""
    if name in row:
        return row[name]
    for key in name.split("."):
        if isinstance(row, list) and key.isdecimal() and int(key) < len(row):
            row = row[int(key)]
        elif isinstance(row, dict):
            row = row.get(key)
        else:
            return None
    return row


def word(value, name, where):
    """A simple value as text; true and false as in JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise UserError(f"{where}: field {name!r} is {value!r:.40}; a text or a number is needed")


def check_fields(names, rows, where):
    """Raise UserError, with the nearest name, for a field that no row has."""
    for name in names:
        if not any(get_field(row, name) is not None for row in rows):
            known = sorted({path for row in rows[:1000] for path in _paths(row)})
            raise UserError(
                f"{where}: no row has a field {name!r}{nearest(name, known)}; "
                f"there are {', '.join(known)[:300]}"
            )


def _paths(value, prefix=""):
    for key, inner in value.items():
        yield f"{prefix}{key}"
        if isinstance(inner, dict):
            yield from _paths(inner, f"{prefix}{key}.")
