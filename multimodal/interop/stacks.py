"""Scanned stacks: one tree `stack/blocks` with a leading layer axis <-> `stack/block_0`,
`stack/block_1`, ..."""

import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def unstack_flat(flat: dict) -> dict:
    """{path: array} with every `blocks/` split into `block_I/` along its first axis."""
    out = {}
    for path, x in flat.items():
        if "/blocks/" not in path:
            out[path] = x
            continue
        for i in range(x.shape[0]):
            out[path.replace("/blocks/", f"/block_{i}/", 1)] = x[i]
    return out


def stack_flat(flat: dict, like) -> dict:
    """The inverse of unstack_flat for those paths that are scanned in `like`, a container of paths.

    A scanned leaf of which some layer is missing from `flat` is left out.
    """
    out, groups = group_layers(flat, like)
    for path, layers in groups.items():
        if sorted(layers) == list(range(len(layers))):
            out[path] = np.stack([layers[i] for i in range(len(layers))])
    return out


def group_layers(flat: dict, like) -> tuple[dict, dict]:
    """({path: array} of what is not scanned in `like`, {scanned path: {layer: array}})."""
    out, groups = {}, {}
    for path, x in flat.items():
        whole = re.sub(r"/block_\d+/", "/blocks/", path, count=1)
        if whole != path and whole in like:
            groups.setdefault(whole, {})[int(re.search(r"/block_(\d+)/", path)[1])] = x
        else:
            out[path] = x
    return out, groups


def unstack_layers(params: dict) -> dict:
    """A parameter tree with every scanned stack (config key `scan`) as separate blocks."""
    return unflatten_dict(unstack_flat(flatten_dict(params, sep="/")), sep="/")


def stack_layers(params: dict, like: dict) -> dict:
    """A parameter tree with the stacks that are scanned in the tree `like` (arrays or shapes)
    scanned."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(stack_flat(flat, flatten_dict(like, sep="/")), sep="/")
