"""Evaluations: what a Net is worth on held-out examples. They need a Net, not a trainer."""

from multimodal.evals.registry import EVALUATORS, register
from multimodal.evals.run import evaluate, run_evals
from multimodal.evals.table import headline, table

__all__ = ["EVALUATORS", "evaluate", "headline", "register", "run_evals", "table"]
