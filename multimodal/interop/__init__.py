"""Weights in and out of other codebases' formats: one table of names each (tables), one converter
(engine)."""

from multimodal.interop.files import load_file
from multimodal.interop.formats import FORMATS
from multimodal.interop.stacks import stack_layers, unstack_layers
from multimodal.interop.weights import (
    Imported,
    export_weights,
    import_weights,
    initialise_from,
    model_config_from_weights,
)

__all__ = [
    "FORMATS",
    "Imported",
    "export_weights",
    "import_weights",
    "initialise_from",
    "load_file",
    "model_config_from_weights",
    "stack_layers",
    "unstack_layers",
]
