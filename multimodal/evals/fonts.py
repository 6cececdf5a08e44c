"""A font that can draw a text, among those of the system and matplotlib's own."""

import functools
import unicodedata

from PIL import ImageFont, features

# Tried first, as their letters sit well beside each other; then every font that there is.
PREFERRED = (
    "DejaVu Sans",
    "Noto Sans",
    "Noto Sans CJK",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Source Han Sans",
    "PingFang",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "WenQuanYi",
    "Droid Sans Fallback",
    "Unifont",
)
# Letters of these change shape or place within a word, which takes a layout engine.
SHAPED = ("ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "THAI", "KHMER", "MYANMAR")


@functools.lru_cache(maxsize=1)
def _font_files():
    """Regular upright font files, the preferred ones first."""
    from matplotlib import font_manager

    def place(entry):
        order = next((i for i, name in enumerate(PREFERRED) if entry.name.startswith(name)), 99)
        return order, len(entry.name), entry.fname

    fonts = [
        e
        for e in font_manager.fontManager.ttflist
        # The last-resort font "has" every character, as a box.
        if "Last Resort" not in e.name
        and e.style == "normal"
        and str(e.weight) in ("400", "normal", "regular", "book")
    ]
    return tuple(dict.fromkeys(e.fname for e in sorted(fonts, key=place)))


@functools.lru_cache(maxsize=512)
def _characters(path):
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _needs_shaping(text):
    return any(unicodedata.name(c, "").startswith(SHAPED) for c in text)


def find_font(text) -> str | None:
    """Path of a font that has every character of the text and can lay it out, or None."""
    if _needs_shaping(text) and not features.check("raqm"):
        return None
    wanted = {
        ord(c)
        for c in text
        if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf", "Mn")
    }
    return next((path for path in _font_files() if wanted <= _characters(path)), None)


@functools.lru_cache(maxsize=128)
def load_font(path, size):
    """The font of that file at a size in pixels."""
    return ImageFont.truetype(path, size)


def plain_font(size, bold=False):
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic, Arabic."""
    from matplotlib import font_manager

    wanted = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return load_font(font_manager.findfont(wanted), size)
