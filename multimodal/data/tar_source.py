"""Tar shards of images with captions in a JSONL file, or inside the shards themselves."""

import glob
import json
import logging
import os

from multimodal.data import jsonl_rows
from multimodal.data.sources import read_label_names, strings
from multimodal.data.tar_index import Shards
from multimodal.errors import BadRecord, UserError, first_line

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
log = logging.getLogger(__name__)


class _ShardSource:
    """What both kinds share: rows of (int id, image Member, captions, label or None)."""

    label_names = None

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        number, member, texts, label = self._rows[index]
        if not isinstance(texts, list):
            texts = [_text(self._shards.read(texts))]
        example = {"id": number, "image": self._shards.read(member), "text": texts}
        return example if label is None else {**example, "label": label}

    def _finish(self, max_missing_share):
        """Log what was left out, and refuse when that is too much of the whole."""
        self.report = dict(self._shards.report)
        lost = sum(v for k, v in self.report.items() if k != "duplicate_member")
        if self.report:
            log.warning("%s: left out or damaged: %s", self.name, self.report)
        share = max(lost / max(1, len(self._rows) + lost), self._shards.lost_share)
        if share > max_missing_share:
            first = self._shards.first_problem
            raise UserError(
                f"{self.name}: {lost} samples or shards are missing or damaged "
                f"({self.report}), {share:.1%} of all and more than "
                f"max_missing_share={max_missing_share}"
                + (f"; the first: {first}: mend the shard" if first else "")
            )


class JsonlTarSource(_ShardSource):
    """Images in tar shards (`<id>.jpg`), captions in a JSONL file (`id, split, captions`).

    Arguments: `folder` (with `captions.jsonl` and `*.tar`) or `jsonl` and `shards` (a glob or a
    list), names of the fields (`split_field=''` takes all rows), `label_names`, `template` as in
    `jsonl_folder`, `on_bad` ('skip': what can be read of a damaged shard is used, the log names
    it; or 'error') and `max_missing_share` (of rows without an image, and of bytes behind damage,
    that is tolerated; `report` counts them).
    """

    def __init__(
        self,
        split,
        folder="",
        jsonl="",
        shards="",
        text_field="captions",
        id_field="id",
        label_field="label",
        split_field="split",
        label_names=None,
        template="a photo of a {}",
        on_bad="skip",
        max_missing_share=0.01,
    ):
        path = jsonl or os.path.join(folder, "captions.jsonl")
        paths = _find(shards or os.path.join(folder, "*.tar"))
        self.name = f"{os.path.basename(os.path.dirname(os.path.abspath(path)))}:{split}"
        self.label_names = read_label_names(label_names)
        self._fields = (text_field, id_field, label_field, template)
        rows = self._read(path, split, split_field)
        self._shards = Shards(paths, on_bad)
        self._rows = self._join(rows)
        self._finish(max_missing_share)

    def _read(self, path, split, split_field):
        text_field, id_field, label_field, template = self._fields
        rows = []
        for line, row in jsonl_rows.read_jsonl(path):
            if split_field and jsonl_rows.string_field(path, line, row, split_field) != split:
                continue
            key = jsonl_rows.string_field(path, line, row, id_field)
            label = jsonl_rows.label(path, line, row, label_field, self.label_names)
            texts = jsonl_rows.captions(path, line, row, text_field, required=label is None)
            rows.append((key, texts or [template.format(self.label_names[label])], label))
        return rows

    def _join(self, rows):
        joined, numbers = [], {}
        for key, texts, label in rows:
            member = _image_member(self._shards.samples.get(key, {}))
            if member is None:
                if not self._shards.report["missing_image"]:
                    log.warning("%s: no image for id %r in any shard", self.name, key)
                self._shards.report["missing_image"] += 1
            else:
                joined.append((numbers.setdefault(key, len(numbers)), member, texts, label))
        self._shards.samples = {}  # Only the rows' own members are needed from here on.
        return joined


class TarSource(_ShardSource):
    """Shards that hold images and captions side by side (`key.jpg`, `key.txt` or `key.json`).

    Arguments: `shards` (a glob or a list), `text_extension` ('txt', or 'json' with `text_field`),
    `on_bad`, `max_missing_share` as above (of samples without an image or a text). The
    split is only a name here: give other shards for another split.
    """

    def __init__(
        self,
        split,
        shards,
        text_extension="txt",
        text_field="caption",
        on_bad="skip",
        max_missing_share=0.01,
    ):
        self.name = f"tar:{split}"
        self._shards = Shards(_find(shards), on_bad)
        self._rows = []
        for key, sample in self._shards.samples.items():
            image, text = _image_member(sample), sample.get(text_extension)
            if image is None or text is None or not text.size:
                self._lacks("text" if image else "image", key, sample)
                continue
            if text_extension == "json":
                text = _json_texts(self._shards, text, text_field)
            if text is None:
                self._shards.report["bad_text"] += 1
                continue
            self._rows.append((len(self._rows), image, text, None))
        self._shards.samples = {}
        self._finish(max_missing_share)
        if not self._rows:
            raise UserError(f"{self.name}: no examples in {', '.join(self._shards.paths[:3])}")

    def _lacks(self, what, key, sample):
        shards = self._shards
        shards.report[f"missing_{what}"] += 1
        path = shards.paths[next(iter(sample.values())).shard]
        shards.first_problem = shards.first_problem or f"{path}: sample {key!r} has no {what}"


def _find(pattern):
    """The shards of a glob or of a list of globs, sorted."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    paths = set()
    for p in map(os.path.expanduser, patterns):
        # A shard that is named and missing is damage like any other.
        paths |= set(glob.glob(p) or ([p] if len(patterns) > 1 and glob.escape(p) == p else []))
    paths = sorted(paths)
    if not any(map(os.path.exists, paths)):
        raise UserError(f"no tar shards match {pattern!r}")
    return paths


def _image_member(sample):
    """The image of a sample, or None; an empty file is no image."""
    found = (sample[e] for e in IMAGE_EXTENSIONS if e in sample)
    return next((member for member in found if member.size), None)


def _text(data):
    return data.decode("utf-8", "replace").removeprefix("\ufeff").strip()


def _json_texts(shards, member, field):
    """The texts in a JSON member; None, and a line in the log, where there are none."""
    try:
        texts = strings(json.loads(shards.read(member))[field])
    except (ValueError, KeyError, TypeError, RecursionError, BadRecord) as e:
        texts, why = [], first_line(e)
    else:
        why = "no text there"
    if not texts:
        path = shards.paths[member.shard]
        log.warning("%s: JSON at byte %d has no %r (%s)", path, member.offset, field, why)
    return texts or None
