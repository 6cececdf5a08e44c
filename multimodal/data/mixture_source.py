"""Several sources as one, in exact proportions."""

import math

import numpy as np

from multimodal.data.sources import build_source, is_label, texts_of
from multimodal.errors import BadRecord, UserError

FIELDS = ("source", "kwargs", "weight", "split")


class MixtureSource:
    """A weighted mixture: `parts` is name -> dict(source, kwargs, weight, split).

    An epoch is as long as it takes to see every example of every part; parts of more weight than
    examples then come round again, each time with other augmentation. Of N examples of an epoch a
    part has weight x N, rounded; weights (default: 1) need not sum to one. A part's split is that
    of the mixture unless it names its own. Modalities that a part lacks are missing from its
    examples, its missing labels -1; a label of several classes at once must be in every part.
    Raises UserError for parts that do not fit together.
    """

    def __init__(self, split, parts):
        self.name = f"mixture:{split}"
        if not isinstance(parts, dict) or not parts:
            raise UserError("mixture: parts must be a dict of at least one: name -> its source")
        self._names = sorted(parts)  # a config that was saved and read has its keys in this order
        self._parts = [self._build(name, parts[name], split) for name in self._names]
        self._ends = np.cumsum(_counts([len(p) for p in self._parts], self._weights(parts)))
        self.targets = self._merged()
        self.label_names = self.targets.get("label")
        examples = [_first(p) for p in self._parts]
        modalities = [{k for k in e if _is_modality(k)} for e in examples]
        some, every = set().union(*modalities), set.intersection(*modalities)
        optional = {m for p in self._parts for m in getattr(p, "optional", ())}
        self.optional = tuple(sorted(some - every | optional))
        self._labels = self._find_labels(examples)
        self.credit = "; ".join(sorted({c for p in self._parts if (c := getattr(p, "credit", ""))}))
        self.report = {
            f"{n}/{k}": v
            for n, p in zip(self._names, self._parts)
            for k, v in getattr(p, "report", {}).items()
        }

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        part = int(np.searchsorted(self._ends, index, "right"))
        source = self._parts[part]
        example = dict(source[(index - int(self._ends[part]) + len(self)) % len(source)])
        # Ids of different parts never meet: they are interleaved.
        example["id"] = example["id"] * len(self._parts) + part
        return dict.fromkeys(self._labels, -1) | example

    def texts(self, modality):
        """All texts of a modality, each part's once."""
        for part in self._parts:
            yield from texts_of(part, modality)

    def _build(self, name, spec, split):
        unknown = sorted(set(spec) - set(FIELDS)) if isinstance(spec, dict) else ["no dict"]
        if unknown or "source" not in spec:
            raise UserError(
                f"mixture: parts.{name} takes {', '.join(FIELDS)}; source is needed"
                + (f", {unknown[0]!r} unknown" if unknown else "")
            )
        return build_source(spec["source"], spec.get("split", split), spec.get("kwargs"))

    def _weights(self, parts):
        weights = [parts[n].get("weight", 1.0) for n in self._names]
        for name, w in zip(self._names, weights):
            if isinstance(w, bool) or not isinstance(w, int | float) or not 0 < w < math.inf:
                raise UserError(f"mixture: parts.{name}.weight is {w!r}: give a number above 0")
        return weights

    def _find_labels(self, examples):
        """Keys of the labels that some part has."""
        values = {k: v for e in examples for k, v in e.items() if is_label(k)}
        for name, example in zip(self._names, examples):
            for key, value in values.items():
                if key not in example and np.ndim(value):
                    raise UserError(
                        f"mixture: parts.{name} lacks {key!r}, which is several at once"
                    )
        return tuple(values)

    def _merged(self):
        merged = {}
        for name, part in zip(self._names, self._parts):
            for key, names in (getattr(part, "targets", None) or {}).items():
                known = merged.get(key) or names
                merged[key] = known
                if names and names != known:
                    raise UserError(f"mixture: parts.{name} has other classes of {key!r}")
        return merged


def _first(source):
    """The first example that can be read."""
    for i in range(len(source)):
        try:
            return source[i]
        except BadRecord as e:
            bad = e
    raise UserError(f"{source.name}: no record can be read; the last: {bad}")


def _is_modality(key):
    return key != "id" and not is_label(key) and not key.endswith("_group")


def _counts(lengths, weights):
    """Examples of each part in an epoch: shares by weight, and no example left out."""
    total = sum(weights)
    whole = max(math.ceil(n * total / w) for n, w in zip(lengths, weights))
    return [max(n, round(whole * w / total)) for n, w in zip(lengths, weights)]
