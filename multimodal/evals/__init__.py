"""Evaluations: what a Net is worth on held-out examples. They need a Net, not a trainer."""

from multimodal.evals.registry import EVALUATORS, register
from multimodal.evals.run import evaluate, run_evals

__all__ = ["EVALUATORS", "evaluate", "register", "run_evals"]
