"""Pre-train: python train.py --config configs/NAME.py[:ARG] --workdir DIR [--config.KEY=VALUE]
[--profile [START:STOP]]

Or, without training: python train.py --config ... --plan tpu:v5e:16x16 [--plan_json FILE]
"""

from multimodal.cli import BEGAN, run_command


def main(args):
    from multimodal.config import load_config

    config = load_config(args.config, args.overrides)
    if args.plan:
        from multimodal.planning.command import plan

        plan(config, args)
        return
    from multimodal.evals.report import report
    from multimodal.training.cpu_memory import keep_memory
    from multimodal.training.distributed import initialise
    from multimodal.training.loop import train

    initialise(config.mesh.heartbeat)
    keep_memory()
    train(config, args.workdir, args.profile, BEGAN)
    report(args.workdir)


if __name__ == "__main__":
    run_command(main, __doc__, required=("config", "workdir"))
