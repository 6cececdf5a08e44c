"""Networks: raw arrays -> Tokens -> outputs. Knows nothing of objectives or training."""

from multimodal.nn.layers import Tokens
from multimodal.nn.model import Encoded, Model, Net, build_model

__all__ = ["Encoded", "Model", "Net", "Tokens", "build_model"]
