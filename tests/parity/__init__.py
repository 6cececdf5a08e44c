"""Numerical parity with golden values of the original codebases: `python -m tests.parity FOLDER
[FOLDER ...]`.

What a folder holds is found out from its files, sizes from its config and weights.
"""

import pathlib

from multimodal.errors import UserError
from tests.parity import albef, clip, processes, retrieval, schedules, towers
from tests.parity.report import Report

CHECKS = (
    albef.check_pretraining,
    albef.check_groups,
    processes.check_two_processes,
    retrieval.check_retrieval,
    retrieval.check_rerank,
    schedules.check_albef,
    schedules.check_cosine,
    clip.check_clip,
    clip.check_siglip,
    towers.check_towers,
)


def check_folder(folder) -> Report:
    """Compare with everything in a folder that a check knows; the rest is listed as not covered."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of golden values")
    report = Report(folder.name)
    for check in CHECKS:
        check(folder, report)
    for path in sorted(folder.glob("*.npz")):
        if path.name not in report.used:
            report.skip(path.name, "not covered yet")
    return report
