"""In-memory source, for tests and small experiments."""

from multimodal.data.sources import is_label, read_label_names
from multimodal.errors import UserError


class ArraySource:
    """Parallel sequences, one a field: `ArraySource('train', image=images, text=captions)`.

    `ids` defaults to the row number; `optional` names the modalities whose entries may be None.
    """

    def __init__(self, split, ids=None, optional=(), label_names=None, name="arrays", **fields):
        lengths = {key: len(values) for key, values in fields.items()}
        if ids is not None:
            lengths["ids"] = len(ids)
        if len(set(lengths.values())) != 1:
            raise UserError(f"arrays of different lengths: {lengths}")
        self.name = f"{name}:{split}"
        self.optional = tuple(optional)
        self.label_names = read_label_names(label_names)
        self.targets = {
            k: self.label_names if k == "label" else None for k in fields if is_label(k)
        }
        self._fields = fields
        self._ids = range(next(iter(lengths.values()))) if ids is None else ids

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, index):
        values = {key: values[index] for key, values in self._fields.items()}
        return {"id": int(self._ids[index]), **{k: v for k, v in values.items() if v is not None}}
