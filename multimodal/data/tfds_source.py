"""Prepared TFDS sets and builders of our own, read by random access and without TensorFlow."""

import contextlib
import glob
import io
import json
import os

import numpy as np
import tensorflow_datasets as tfds

from multimodal import paths
from multimodal.data.builders import BUILDERS
from multimodal.data.builders.preparing import own_builder
from multimodal.data.sources import read_label_names
from multimodal.errors import BadRecord, UserError, first_line
from multimodal.registry import nearest

# How features.json names a class; 'type' is the older way.
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_EXTRA = "pip install -e '.[tfds-tensorflow]'"


class TfdsSource:
    """A split of a TFDS set in `array_record` format.

    Arguments: `name` (a builder of ours, a TFDS name such as `cifar10` or `name/config`, or a
    prepared folder), `data_dir` ('': ./data for our own builders, TFDS's default otherwise), the
    names of the features that hold image, text, label, id and the text's groups ('': found by
    type and name) and `template`, which makes a text of a label where there is no text feature.
    Raises UserError for a set that is not prepared, needs TensorFlow or is in another format.
    """

    def __init__(
        self,
        split,
        name,
        data_dir="",
        image_field="",
        text_field="",
        label_field="",
        id_field="",
        group_field="",
        label_names=None,
        template="a photo of a {}",
    ):
        for path in (name, data_dir):
            paths.must_be_local(path, "TFDS sets, which are ArrayRecord files,")
        builder = _find_builder(name, data_dir)
        _check_format(name, builder)
        self.name = f"{name}:{split}"
        self._fields = fields = _detect_fields(
            name,
            builder.info.features,
            {
                "image": image_field,
                "text": text_field,
                "label": label_field,
                "id": id_field,
                "group": group_field,
            },
        )
        self.credit = getattr(builder, "CREDIT", "")
        self.label_names = read_label_names(label_names) or _names_of(builder, fields["label"])
        self._template = template
        self._data = _open_split(name, builder, split, fields["image"])

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index):
        fields = self._fields
        try:
            record = self._data[index]
        except Exception as e:  # what a damaged file makes the reader raise is not documented
            raise BadRecord(f"cannot be read ({first_line(e)})") from None
        example = {"id": int(record[fields["id"]]) if fields["id"] else index}
        if fields["image"]:
            example["image"] = record[fields["image"]]
        if fields["label"]:
            example["label"] = int(record[fields["label"]])
        if fields["text"]:
            example["text"] = _strings(record[fields["text"]])
        elif fields["label"] and self.label_names:
            example["text"] = [self._template.format(self.label_names[example["label"]])]
        if fields["group"]:
            example["text_group"] = _strings(record[fields["group"]])
        return example


def _find_builder(name, data_dir):
    """The builder of a name: ours, a prepared folder, or one of the TFDS catalogue."""
    if name in BUILDERS:
        return own_builder(name, data_dir)
    folder = _prepared_folder(name, data_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a banner about TensorFlow.
            if folder:  # Needs no builder code, so no TensorFlow either.
                _check_features(folder)
                return tfds.builder_from_directory(folder)
            return tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = [*BUILDERS, *tfds.list_builders(with_community_datasets=False)]
        raise UserError(
            f"no TFDS builder or prepared folder {name!r}{nearest(name, known)}"
        ) from None
    except ImportError as e:
        raise UserError(
            f"the TFDS builder {name!r} needs a package that is not installed "
            f"({str(e).rpartition(': ')[2]}); for TensorFlow: {_EXTRA}, then prepare it once with "
            "file_format='array_record'"
        ) from None
    except Exception as e:  # as above, of dataset_info.json and features.json
        raise UserError(f"cannot load the TFDS set {name!r}: {first_line(e)}") from None


def _check_features(folder):
    """Raise ValueError where features.json names classes that are not TFDS's own: reading it
    imports their modules.
    """
    try:
        with open(os.path.join(folder, "features.json"), encoding="utf-8") as f:
            left = [json.load(f)]
    except FileNotFoundError:  # which TFDS complains about
        return
    while left:
        node = left.pop()
        if isinstance(node, dict):
            left += node.values()
            for name in (node.get(key) for key in _CLASS_KEYS):
                if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
                    raise ValueError(f"features.json names {name!r:.60}, which is no class of TFDS")
        elif isinstance(node, list):
            left += node


def _prepared_folder(name, data_dir):
    """The newest prepared version of a set, given as a folder or as a name inside `data_dir`."""
    root = os.path.expanduser(data_dir) or os.path.join("~", "tensorflow_datasets")
    for base in (os.path.expanduser(name), os.path.join(os.path.expanduser(root), name)):
        found = glob.glob(os.path.join(glob.escape(base), "dataset_info.json"))
        found = found or glob.glob(os.path.join(glob.escape(base), "[0-9]*.*", "dataset_info.json"))
        if found:
            return os.path.dirname(max(found, key=_version))
    return ""


def _version(path):
    parts = os.path.basename(os.path.dirname(path)).split(".")
    return [int(p) if p.isdigit() else -1 for p in parts]


def _check_format(name, builder):
    if not os.path.exists(os.path.join(builder.data_path, "dataset_info.json")):
        raise UserError(
            f"{name!r} is not prepared in {os.fspath(builder.data_path)!r}; prepare it "
            f"once: tfds.builder({name!r}, data_dir=..., file_format='array_record')"
            f".download_and_prepare() (some builders need TensorFlow for this: {_EXTRA})"
        )
    file_format = builder.info.file_format
    if file_format == tfds.core.FileFormat.PARQUET:
        raise UserError(
            f"{name!r} is prepared as parquet, which TFDS writes with rows missing; "
            "prepare it again with file_format='array_record'"
        )
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(
            f"{name!r} is prepared as {file_format.value}, which has no random access; "
            "prepare it again with file_format='array_record'"
        )


def _detect_fields(name, features, given):
    """Feature names by role; those not given are found by type, then by usual names."""
    for role, field in given.items():
        if field and field not in features:
            raise UserError(
                f"{name}: no feature {field!r} for {role}{nearest(field, features)}; "
                f"it has {', '.join(features)}"
            )
    kinds = {
        "image": (tfds.features.Image, ("image",)),
        "text": (tfds.features.Text, ("captions", "names", "caption", "text")),
        "label": (tfds.features.ClassLabel, ("label",)),
    }
    fields = {role: given[role] or _first(features, *kind) for role, kind in kinds.items()}
    usual = {"id": "id", "group": "languages"}
    for role, key in usual.items():
        fields[role] = given[role] or (key if key in features else "")
    if fields["id"] and not np.issubdtype(features[fields["id"]].np_dtype, np.integer):
        fields["id"] = ""  # File names and the like: the row number serves as well.
    if not fields["image"] and not fields["text"]:
        raise UserError(f"{name}: found neither an image nor a text among {', '.join(features)}")
    return fields


def _first(features, kind, usual):
    """The feature with a usual name, else the only one of that type; text only by usual name."""
    matching = [k for k, f in features.items() if isinstance(_inner(f), kind)]
    named = [k for k in usual if k in matching]
    if named or kind is tfds.features.Text:
        return named[0] if named else ""
    return matching[0] if len(matching) == 1 else ""


def _inner(feature):
    is_list = isinstance(feature, tfds.features.Sequence)
    return feature.feature if is_list else feature


def _names_of(builder, field):
    names = getattr(builder.info.features[field], "names", None) if field else None
    return [str(n).replace("_", " ") for n in names] if names else None


def _open_split(name, builder, split, image_field):
    decoders = {image_field: tfds.decode.SkipDecoding()} if image_field else None
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except Exception as e:  # as above
        known = list(builder.info.splits)
        raise UserError(
            f"{name}: no split {split!r}{nearest(split, known)}; it has "
            f"{', '.join(known)} ({first_line(e)})"
        ) from None


def _strings(value):
    """A feature's text or texts as a list of str."""
    values = [value] if isinstance(value, (str, bytes)) else value
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
