"""Tar shards of images with captions in a JSONL file, or inside the shards themselves."""

import json
import logging
import os

from multimodal import paths
from multimodal.data import jsonl_rows, splits
from multimodal.data.row_files import read_rows
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
    list), in all of which `{split}` is filled in; names of the fields, `split_field`,
    `label_names`, `template` as in `jsonl_folder`, `on_bad` ('skip': what can be read of a damaged
    shard is used, the log names it; or 'error') and `max_missing_share` (of rows without an image,
    and of bytes behind damage, that is tolerated; `report` counts them).
    """

    def __init__(
        self,
        split,
        folder="",
        jsonl="",
        shards="",
        text_field="",
        id_field="id",
        label_field="label",
        split_field=None,
        label_names=None,
        template="a photo of a {}",
        on_bad="skip",
        max_missing_share=0.01,
    ):
        path, told = splits.fill(jsonl or paths.join(folder, "captions.jsonl"), split)
        files = _find(splits.fill(shards or paths.join(folder, "*.tar"), split)[0])
        self.name = f"{os.path.basename(paths.folder_of(path))}:{split}"
        self.label_names = read_label_names(label_names)
        self._fields = (text_field, id_field, label_field, template)
        field = "" if told and split_field is None else split_field
        rows = self._read(path, split, field)
        self._shards = Shards(files, on_bad)
        self._rows = self._join(rows)
        self._finish(max_missing_share)

    def _read(self, path, split, split_field):
        text_field, id_field, label_field, template = self._fields
        rows = []
        for line, row in jsonl_rows.of_split(path, read_rows(path), split, split_field):
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

    Arguments: `shards` (a glob or a list; `{split}` is filled in), `text_extension` ('txt', or
    'json' with `text_field`), `on_bad`, `max_missing_share` as above (of samples without an image
    or a text), `any_split`: without `{split}` in `shards` there is 'train' alone; True takes all
    samples for every split.
    """

    def __init__(
        self,
        split,
        shards,
        text_extension="txt",
        text_field="caption",
        on_bad="skip",
        max_missing_share=0.01,
        any_split=False,
    ):
        self.name = f"tar:{split}"
        shards, told = splits.fill(shards, split)
        if not told and not any_split:
            how = "put {split} into `shards`, or set any_split=True to take all for every split"
            splits.check_alone(f"tar: {shards}", split, how)
        self._shards = Shards(_find(shards), on_bad)
        self._rows = []
        for key, sample in self._shards.samples.items():
            image, text = _image_member(sample), sample.get(text_extension)
            if image is None or text is None or not text.size:
                shard = self._shards.paths[next(iter(sample.values())).shard]
                lacks = "text" if image else "image"
                self._shards.leave_out(shard, f"missing_{lacks}", f"sample {key!r} has no {lacks}")
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
            first, *more = self._shards.paths
            raise UserError(
                f"{self.name}: no examples in {first}" + (f" and {len(more)} more" if more else "")
            )


def _find(pattern):
    """The shards of a glob or of a list of globs, sorted."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found = set()
    for p in patterns:
        # A shard that is named and missing is damage like any other.
        alone = [os.path.expanduser(p)] if len(patterns) > 1 and paths.escape(p) == p else []
        found |= set(paths.find(p) or alone)
    found = sorted(found)
    if not any(paths.is_remote(p) or os.path.exists(p) for p in found):
        raise UserError(f"no tar shards match {pattern!r}")
    return found


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
