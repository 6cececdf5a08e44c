"""What tests of sound and video share."""

import json

import pytest

from multimodal.errors import BadRecord


def by_manifest(shared, kind, transform):
    """Run a transform over the bad inputs of a kind: {path: result, or None where refused}."""
    folder = shared / "data" / "bad_inputs"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/bad_inputs")
    found, wrong = {}, []
    for entry in json.loads((folder / "manifest.json").read_text())["files"]:
        if entry["kind"] != kind:
            continue
        try:
            found[entry["path"]] = transform((folder / entry["path"]).read_bytes())
            outcome = "accept"
        except BadRecord as e:
            assert "\n" not in str(e)
            found[entry["path"]], outcome = None, "reject"
        if entry["expect"] not in (outcome, "either"):
            wrong.append((entry["path"], outcome))
    assert not wrong
    return found
