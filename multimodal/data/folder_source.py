"""A file of rows (JSONL, CSV) beside a folder of images."""

import os

from multimodal import paths
from multimodal.data import jsonl_rows, splits
from multimodal.data.row_files import read_rows
from multimodal.data.sources import read_label_names
from multimodal.errors import UserError


class JsonlFolderSource:
    """Rows `{"id", "image": path inside the folder, "caption", "label"?, "split"?}`.

    Arguments: `jsonl` (file; or .csv, .tsv with a header) and `folder` (default: where `jsonl`
    lies; `jsonl` itself is also found inside it; in both `{split}` is filled in), names of the
    fields (`text_field`: by default a list in 'captions', or a text or list in 'caption'),
    `split_field` (default: 'split' where the rows have it and the file's name has no `{split}`; ''
    takes all rows for every split), `label_names` (list or file) and `template`, which makes the
    text of a row that has a label but no captions. Where nothing tells the splits apart there is
    'train' alone. Rows with the same id are positives of each other. Raises UserError with file and
    line for a bad row, a missing image and a path that leaves the folder.
    """

    def __init__(
        self,
        split,
        jsonl,
        folder="",
        image_field="image",
        text_field="",
        id_field="id",
        label_field="label",
        split_field=None,
        label_names=None,
        template="a photo of a {}",
    ):
        jsonl, told = splits.fill(jsonl, split)
        folder, apart = splits.fill(folder, split)
        self.name = f"{os.path.basename(jsonl)}:{split}"
        self.label_names = read_label_names(label_names)
        given, jsonl = jsonl, _find(jsonl, folder)
        told = told or (apart and jsonl != given)  # the rows lie in the split's own folder
        self._folder = paths.real(folder or paths.folder_of(jsonl))
        self._fields = (image_field, text_field, id_field, label_field)
        self._template, self._listed = template, {}
        field = "" if told and split_field is None else split_field
        self._rows = self._read(jsonl, split, field)
        self._listed = {}

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        number, path, texts, label = self._rows[index]
        example = {"id": number, "image": paths.read_example(path), "text": texts}
        return example if label is None else {**example, "label": label}

    def _read(self, path, split, split_field):
        rows, numbers = [], {}
        for line, row in jsonl_rows.of_split(path, read_rows(path), split, split_field):
            image, texts, key, label = self._row(path, line, row)
            rows.append((numbers.setdefault(key, len(numbers)), image, texts, label))
        return rows

    def _row(self, path, line, row):
        image_field, text_field, id_field, label_field = self._fields
        name = jsonl_rows.string_field(path, line, row, image_field)
        key = jsonl_rows.string_field(path, line, row, id_field) if id_field in row else name
        label = jsonl_rows.label(path, line, row, label_field, self.label_names)
        texts = jsonl_rows.captions(path, line, row, text_field, required=label is None)
        if not texts:
            texts = [self._template.format(self.label_names[label])]
        return self._inside(path, line, name), texts, key, label

    def _inside(self, path, line, name):
        """The real path of an image, which must be a file inside the folder."""
        try:
            if paths.is_remote(self._folder):
                full = paths.inside(self._folder, name, "image")
            else:  # where links lead is what counts
                full = os.path.realpath(os.path.join(self._folder, name))
                paths.inside(self._folder, full, "image")
            exists = paths.is_file(full, self._listed)
        except UserError as e:
            raise jsonl_rows.fault(path, line, e) from None
        except ValueError as e:
            raise jsonl_rows.fault(path, line, f"image {name!r} is no path ({e})") from None
        if not exists:
            raise jsonl_rows.fault(path, line, f"image {name!r} does not exist in {self._folder!r}")
        return full


def _find(jsonl, folder):
    """A file of rows by its own path or, where there is none, inside the folder."""
    if not folder or paths.is_remote(jsonl) or os.path.isabs(jsonl) or os.path.exists(jsonl):
        return jsonl
    inner = paths.join(paths.absolute(folder), jsonl)
    if not paths.is_file(inner):
        raise UserError(f"jsonl: no file {jsonl!r}, neither here nor in {folder!r}")
    return inner
