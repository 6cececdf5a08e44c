"""Print the parity tables of folders; exit 1 beyond tolerance or when nothing was checked."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from multimodal.errors import UserError  # noqa: E402
from tests.parity import check_folder  # noqa: E402


def main(folders) -> int:
    """Exit code for these folders."""
    if not folders:
        print("usage: python -m tests.parity FOLDER [FOLDER ...]", file=sys.stderr)
        return 2
    try:
        reports = []
        for folder in folders:
            reports.append(check_folder(folder))
            print(reports[-1].table(), flush=True)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    bad = [r for r in reports if not r.ok]
    checked = sum(len(r.checked) for r in reports)
    verdict = "FAILED" if bad else "all within tolerance"
    print(f"{checked} quantities checked in {len(reports)} folders: {verdict}")
    return 1 if bad else 0


sys.exit(main(sys.argv[1:]))
