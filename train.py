"""Pre-train: python train.py --config configs/NAME.py[:ARG] --workdir DIR [--config.KEY=VALUE]
[--profile [START:STOP]]
"""

from multimodal.cli import BEGAN, run_command


def main(args):
    from multimodal.config import load_config
    from multimodal.evals.report import report
    from multimodal.training.distributed import initialise
    from multimodal.training.loop import train

    config = load_config(args.config, args.overrides)
    initialise(config.mesh.heartbeat)
    train(config, args.workdir, args.profile, BEGAN)
    report(args.workdir)


if __name__ == "__main__":
    run_command(main, __doc__, required=("config", "workdir"))
