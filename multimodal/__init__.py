"""Multimodal pre-training in JAX; `multimodal.load(workdir)` gives a trained model (api.py)."""


def __getattr__(name):
    # On first use: importing the package alone stays cheap, for training's child processes as well.
    if name == "load":
        from multimodal.api import load

        return load
    raise AttributeError(f"module 'multimodal' has no attribute {name!r}")
