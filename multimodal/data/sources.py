"""Data sources: random access to examples, by name or by `package.module:Class`.

A source has `__len__`, `__getitem__` (one example as a dict: modality -> raw value, 'id' -> int,
optionally labels and 'text_group') and `name`; optional are `label_names` (of 'label'), `targets`
(label key -> names of its classes, or None), `optional` (modalities an example may lack) and
`report` (what was left out, by reason). Labels are the keys 'label' and 'label_...': an integer
(-1: unknown), or a uint8 vector of 0 and 1 for several classes at once; each is in every example.
A source must be picklable and safe to read from several threads. A source of your own is one class
with `__init__(self, split, **kwargs)`: decorate it with `@register('my_name')`, or set
`config.data.source = 'my_package.my_module:MyClass'`. For files of your own `records`
(records_source.py) may need no class at all.
"""

import inspect
import re

from multimodal import paths
from multimodal.errors import BadRecord, UserError
from multimodal.registry import lookup, nearest

SOURCES = {
    "array_record": "multimodal.data.array_record_source:ArrayRecordSource",
    "arrays": "multimodal.data.array_source:ArraySource",
    "huggingface": "multimodal.data.parquet_source:HuggingFaceSource",
    "jsonl_folder": "multimodal.data.folder_source:JsonlFolderSource",
    "jsonl_tar": "multimodal.data.tar_source:JsonlTarSource",
    "mixture": "multimodal.data.mixture_source:MixtureSource",
    "parquet": "multimodal.data.parquet_source:ParquetSource",
    "records": "multimodal.data.records_source:RecordsSource",
    "tar": "multimodal.data.tar_source:TarSource",
    "tfds": "multimodal.data.tfds_source:TfdsSource",
    "toy": "multimodal.data.builders.toy:ToySource",
}


def register(name):
    """Class decorator that makes a source known as `name`."""

    def add(cls):
        if name in SOURCES:
            raise ValueError(f"a data source called {name!r} exists already")
        SOURCES[name] = cls
        return cls

    return add


def build_source(name_or_path, split, kwargs=None):
    """Build a source by registered name or `package.module:Class`; never an empty one.

    Raises UserError for an unknown name, wrong arguments and an empty data set.
    """
    where = "config.data.source"
    cls = lookup(SOURCES, name_or_path, where, takes=("split",))
    if isinstance(cls, str):  # Built-in sources are imported on use: TFDS alone takes a second.
        cls = lookup({}, cls, where)
    kwargs = dict(kwargs or {})
    _check_arguments(name_or_path, cls, split, kwargs)
    try:
        source = cls(split, **kwargs)
    except OSError as e:
        raise UserError(f"data source {name_or_path!r}: {e.strerror or e}: {e.filename}") from None
    if len(source) == 0:
        raise UserError(f"data source {source.name}: no examples in split {split!r}")
    return source


def _check_arguments(name, cls, split, kwargs):
    signature = inspect.signature(cls)
    try:
        signature.bind(split, **kwargs)
    except TypeError as e:
        known = [p for p in signature.parameters if p != "split"]
        hint = next((nearest(k, known) for k in kwargs if k not in known), "")
        raise UserError(
            f"config.data.kwargs for source {name!r}: {e}{hint}; it takes {', '.join(known)}"
        ) from None


def texts_of(source, modality):
    """All texts of a modality, where the source can without reading the other modalities.

    Records that cannot be read, and what is no text, are left out: training meets and counts them.
    """
    if hasattr(source, "texts"):
        for text in source.texts(modality):
            yield from strings(text)
        return
    for i in range(len(source)):
        try:
            text = source[i].get(modality)
        except BadRecord:
            continue
        yield from strings(text)


def strings(value):
    """The strings of a text, or of a list of texts."""
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, str)]


def is_label(key):
    """Whether a key of an example is a label."""
    return key == "label" or key.startswith("label_")


def read_label_names(value):
    """Label names from a list, or from a text file with one a line; None stays None."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        return [str(v) for v in value]
    try:
        lines = re.split(r"\r\n|\r|\n", paths.read(value).decode("utf-8-sig"))
        return [line for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"label_names: cannot read {value!r} ({e})") from None
