"""Evaluate a checkpoint: python eval.py --workdir DIR [--step N|latest|best] [--evals a,b] [--data
SOURCE ...]
"""

from multimodal.cli import run_command


def main(args):
    from multimodal.evals.report import report
    from multimodal.evals.run import evaluate_workdir
    from multimodal.training.distributed import initialise

    initialise()
    metrics = evaluate_workdir(args.workdir, args.step, args.evals, args.overrides)
    report(args.workdir, args.step, args.overrides, metrics)


if __name__ == "__main__":
    run_command(main, __doc__, required=("workdir",))
