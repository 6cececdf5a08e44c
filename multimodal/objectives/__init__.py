"""Objectives: pure functions `(net, out, batch, rng, **kwargs) -> (loss, metrics)`, found by name
in a registry.

A new objective is one function with `@register("name")` and one line in a config; a function that
lives elsewhere is named by its import path, `fn = "my_package.my_module:my_loss"`.
"""

from multimodal.objectives import (  # noqa: F401 (they register themselves)
    adversarial,
    alignment,
    classification,
    contrastive,
    correlation,
    itm,
    mlm,
    variational,
)
from multimodal.objectives.registry import OBJECTIVES, Objective, build, register

__all__ = ["OBJECTIVES", "Objective", "build", "register"]
