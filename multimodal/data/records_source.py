"""Any data set whose rows are lines of JSONL or CSV, with media in tar shards, files or arrays.

Adding a data set is a config: `modalities` says where the value of each is found.

    'photo of {label}' or a list      texts made of the row's fields
    dict(text=dict(en='{name.en}'))   the same, each text in a group (its language)
    dict(tar='a-*.tar', member='{id}.wav')              member of tar shards
    dict(file='{id}.mp4', folder='mp4')                 file below a folder
    dict(npz='*.npz', array='images', row='{number}')   row of an array; `index` names a second
                                      array that holds the rows' numbers or names
    ... tiles=(5, 5), channels=1      a picture cut into tiles: frames of a video, row by row
    ... tiles=(6, 1), tile='{part}'   one of the tiles

Words in braces are fields of the row: `{name.en}` and `{slots.0}` lead into objects and lists.
In `rows` and in conditions `{split}` is the split that was asked for.

Spoken and written digits, the pairs of a split in a file of their own:

    dict(root='av_digits', rows='pairs_{split}.jsonl', labels=dict(label='digit'),
         modalities=dict(
             image=dict(npz='mnist_*.npz', index='index', row='{mnist_index}'),
             audio=dict(tar='fsdd*.tar', member='{audio_id}.wav')))

A talking face (GRID): video, sound, words, a label for each word:

    dict(root='grid_s1', rows='clips.jsonl', where=dict(split='{split}'),
         modalities=dict(
             video=dict(tar='sheets-*.tar', member='{id}.jpg', tiles=(5, 5), channels=1),
             audio=dict(tar='audio-*.tar', member='{id}.ogg'), text='{text}'),
         labels=dict(label_command='slots.0', label_colour='slots.1', ...))

Sounds in folds (ESC-10):

    dict(root='esc10', rows='clips.jsonl', id='{label_id}',
         splits=dict(train1=dict(fold=(2, 3, 4)), val1=dict(fold=1)),
         modalities=dict(audio=dict(tar='folds*.tar', member='{id}.ogg'), text='{caption}'),
         labels=dict(label=dict(field='label_id', names_field='label')))

Six pictures a sentence, true or false (NLVR):

    dict(root='nlvr', rows='examples.jsonl', where=dict(split='{split}'), id='{id}',
         expand=dict(permutation=6), labels=dict(label='label'),
         modalities=dict(text='{sentence}', image=dict(
             tar='boxes-*.tar', member='{id}.png', tiles=(6, 1), tile='{permutation}')))

Glyphs in styles, where a glyph has one id in all of them:

    dict(root='emoji', rows='captions.jsonl', id='{id}',
         expand=dict(vendor=('noto', 'twemoji', 'openmoji')),
         splits=dict(train=dict(split='train', vendor=('noto', 'twemoji')),
                     unseen_style=dict(split='dev', vendor='openmoji')),
         modalities=dict(image=dict(tar='{vendor}-*.tar', member='{id}.png'),
                     text=dict(text=dict(en='{name.en}', de='{name.de}'))))
"""

import collections
import itertools
import logging
import os

from multimodal import paths
from multimodal.data import jsonl_rows
from multimodal.data.row_files import read_rows
from multimodal.data.row_labels import Labels
from multimodal.data.row_template import Template, check_fields, get_field, word
from multimodal.data.row_values import build_reader, find_files
from multimodal.data.sources import is_label
from multimodal.data.splits import ALONE
from multimodal.errors import UserError
from multimodal.registry import nearest

log = logging.getLogger(__name__)


class RecordsSource:
    """Rows of JSONL or CSV files with media beside them; see the examples above.

    Args:
      root: folder, or URL of one, that holds all files; nothing outside it is read.
      rows: file of rows (JSONL; .csv or .tsv with a header, see row_files.py), pattern or list of
        them, under root; `{split}` is filled in.
      modalities: modality -> where its value is found.
      where: field -> value, or several values, that rows of any split have.
      splits: split -> conditions like `where`; splits that are not named do not exist.
      expand: name -> values, or a number of them (0, 1, ...): each row becomes one example for each
        value, under that name as if it were a field. Several names: all combinations.
      labels: 'label' or 'label_...' -> field, or dict(field or fn, names, names_field,
        multi); see row_labels.py.
      id: template; examples with the same text are positives of each other. '': all differ. It
        counts over all rows, so that the number is the same in every split.
      optional: modalities that an example may lack. An example that lacks another one, or all, is
        dropped and counted in `report`.
      max_missing_share: more dropped examples than this share of the split are an error.
      on_bad: 'skip': what can be read of damaged tar shards is used, the log names them; 'error'.
    Raises: UserError with the place for anything that does not fit together.
    """

    def __init__(
        self,
        split,
        root,
        rows,
        modalities,
        where=None,
        splits=None,
        expand=None,
        labels=None,
        id="",
        optional=(),
        max_missing_share=0.01,
        on_bad="skip",
    ):
        self._root = paths.absolute(root)
        self.name = f"{os.path.basename(self._root)}:{split}"
        self.optional = tuple(optional)
        self.report = collections.Counter()
        conditions = _conditions(self.name, split, rows, where, splits)
        table = _expand(_read(self._root, rows, split, self.name), expand, self.name)
        every = [row for _, row in table]
        self._readers = self._build_readers(modalities, every, on_bad)
        labels = self._build_labels(labels, every)
        self.targets = {key: label.names for key, label in labels.items()}
        self.label_names = self.targets.get("label")
        ids = _numbers(every, id, self.name)
        chosen = _choose(every, conditions, self.name)
        self._rows = self._locate(
            [(*table[i], ids[i], {k: v.all[i] for k, v in labels.items()}) for i in chosen]
        )
        self._finish(max_missing_share, len(chosen))

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        number, handles, labels = self._rows[index]
        example = {"id": number, **labels}
        for m, handle in handles.items():
            reader = self._readers[m]
            example[m] = reader.read(handle)
            if getattr(reader, "grouped", False):
                example[f"{m}_group"] = list(handle[1])
        return example

    def texts(self, modality):
        """All texts of a modality, without reading anything else."""
        for _, handles, _ in self._rows:
            yield from (
                self._readers[modality].read(handles[modality]) if modality in handles else ()
            )

    def _build_readers(self, modalities, rows, on_bad):
        unknown = [m for m in self.optional if m not in modalities]
        if unknown or not modalities:
            what = (
                f"optional modality {unknown[0]!r} is not among them"
                if modalities
                else "it is empty"
            )
            raise UserError(f"{self.name}: modalities: {what}")
        readers = {}
        for m, spec in modalities.items():
            where = f"{self.name}: modalities.{m}"
            readers[m] = build_reader(spec, self._root, where, on_bad)
            check_fields(readers[m].fields, rows, where)
        return readers

    def _build_labels(self, labels, rows):
        for key in labels or {}:
            if not is_label(key):
                raise UserError(f"{self.name}: labels.{key}: must be 'label' or 'label_...'")
        return {
            key: Labels(spec, rows, self._root, f"{self.name}: labels.{key}")
            for key, spec in (labels or {}).items()
        }

    def _locate(self, rows):
        """Where the values of each row lie: list of (id, {modality: handle}, labels)."""
        located = []
        for place, row, number, labels in rows:
            try:
                found = {m: reader.locate(row) for m, reader in self._readers.items()}
            except UserError as e:
                raise jsonl_rows.fault(*place, e) from None
            missing = [m for m, handle in found.items() if handle is None]
            for m in missing:
                if not self.report[f"missing_{m}"]:
                    log.warning("%s: no %s for line %d of %s", self.name, m, place[1], place[0])
                self.report[f"missing_{m}"] += 1
            if set(missing) - set(self.optional) or len(missing) == len(found):
                self.report["dropped"] += 1
                continue
            handles = {m: handle for m, handle in found.items() if handle is not None}
            located.append((number, handles, labels))
        return located

    def _finish(self, max_missing_share, total):
        """Count what was left out, and refuse when that is too much of the whole."""
        for reader in self._readers.values():
            for damage in reader.close():
                self.report.update(damage)
        self.report = {key: count for key, count in self.report.items() if count}
        if self.report:
            log.warning("%s: missing or damaged: %s", self.name, self.report)
        dropped = self.report.get("dropped", 0)
        if dropped > max_missing_share * total:
            raise UserError(
                f"{self.name}: {dropped} of {total} examples lack a modality ({self.report}): mend "
                "the files, name it in `optional`, or raise max_missing_share"
            )


def _read(root, patterns, split, name):
    """Rows of all files: list of ((path, line), row)."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    patterns = [Template(p, f"{name}: rows").fill({"split": split}) for p in patterns]
    if None in patterns:
        raise UserError(f"{name}: rows: only {{split}} may stand in braces")
    files = find_files(root, patterns, f"{name}: rows")
    return [((path, line), row) for path in files for line, row in read_rows(path)]


def _expand(table, expand, name):
    """Each row once for each combination of the values of `expand`."""
    if not expand:
        return table
    for key, values in expand.items():
        if isinstance(values, str) or not (values > 0 if isinstance(values, int) else values):
            raise UserError(f"{name}: expand.{key}={values!r}: give a list of values or a number")
        if any(key in row for _, row in table):
            raise UserError(f"{name}: expand.{key}: the rows have a field of that name")
    names = sorted(expand)  # A config that was saved and read again has its keys in this order.
    columns = [range(expand[n]) if isinstance(expand[n], int) else expand[n] for n in names]
    combined = [dict(zip(names, values)) for values in itertools.product(*columns)]
    return [(place, {**row, **extra}) for place, row in table for extra in combined]


def _conditions(name, split, rows, where, splits):
    """What rows of the split must have: dict field -> set of words."""
    if splits and split not in splits:
        raise UserError(
            f"{name}: no split {split!r}{nearest(split, splits)}; there are {', '.join(splits)}"
        )
    told = splits or "{split}" in str(rows) or "{split}" in str(where)
    if not told and not (where and split == ALONE):
        raise UserError(
            f"{name}: nothing tells the splits apart: put {{split}} into `rows`, or give "
            "where=dict(split='{split}') or `splits` (all rows: splits=dict(train={}))"
        )
    found = collections.defaultdict(list)
    for field, wanted in [*(where or {}).items(), *((splits or {}).get(split) or {}).items()]:
        place = f"{name}: condition on {field!r}"
        wanted = wanted if isinstance(wanted, list | tuple) else [wanted]
        words = [Template(word(w, field, place), place).fill({"split": split}) for w in wanted]
        found[field].append(set(words))
    return dict(found)


def _choose(rows, conditions, name):
    """Numbers of the rows that meet all conditions."""
    check_fields(conditions, rows, name)

    def meets(row, field, sets):
        value = get_field(row, field)
        return value is not None and all(word(value, field, name) in words for words in sets)

    chosen = [
        i for i, row in enumerate(rows) if all(meets(row, f, s) for f, s in conditions.items())
    ]
    if not chosen:
        wanted = "; ".join(f"{f} in {sorted(set.intersection(*s))}" for f, s in conditions.items())
        there = "; ".join(
            f"{f}: {', '.join(sorted({str(get_field(row, f)) for row in rows}))[:100]}"
            for f in conditions
        )
        raise UserError(f"{name}: none of {len(rows)} rows has {wanted}; there are {there}")
    return chosen


def _numbers(rows, template, name):
    """The id of each row: the first row with the same text of the template."""
    if not template:
        return list(range(len(rows)))
    template, numbers = Template(template, f"{name}: id"), {}
    check_fields(template.fields, rows, f"{name}: id")
    texts = [template.fill(row) for row in rows]
    # A row without the fields is like no other.
    return [numbers.setdefault(i if t is None else t, i) for i, t in enumerate(texts)]
