"""What the classes of a run are called: classes.json in its folder, {label's key: names}."""

import json
import pathlib

from multimodal import paths


def class_names(source) -> dict[str, list[str]]:
    """{label's key: names of its classes}, of the labels whose classes a source has names of."""
    known = {"label": getattr(source, "label_names", None)}
    known |= getattr(source, "targets", None) or {}
    return {k: [str(n) for n in v] for k, v in known.items() if v}


def write_class_names(workdir, config, source):
    """Write classes.json, as the run's training data tells; nothing where it does not."""
    wanted = {c.target for c in config.model.get("classifiers", {}).values()}
    names = {k: v for k, v in class_names(source).items() if k in wanted}
    if names:
        text = json.dumps(names, indent=1) + "\n"
        paths.write(pathlib.Path(workdir, "classes.json"), text.encode())


def read_class_names(workdir, config) -> dict[str, list[str]]:
    """{classifier: names of its classes}; without those that the folder has no fitting names of."""
    try:
        text = pathlib.Path(workdir, "classes.json").read_text(encoding="utf-8")
        known = dict(json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    found = {}
    for name, c in config.model.get("classifiers", {}).items():
        names = known.get(c.get("target", "label"))
        if isinstance(names, list) and len(names) == c.classes:
            found[name] = [str(n) for n in names]
    return found
