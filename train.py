"""Pre-train: python train.py --config configs/NAME.py[:ARG] --workdir DIR [--config.KEY=VALUE]"""

from multimodal.cli import run_command


def main(args):
    from multimodal.config import load_config

    config = load_config(args.config, args.overrides)
    if args.plan:
        from multimodal.planning.command import plan

        plan(config, args)
    else:
        from multimodal.evals.report import report
        from multimodal.training.loop import train

        train(config, args.workdir)
        report(args.workdir)


if __name__ == "__main__":
    plans = ("plan", "plan_json", "plan_examples")
    run_command(main, __doc__, required=("config", "workdir"), optional=plans)
