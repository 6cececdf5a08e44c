"""`train.py --plan TARGET`: print a plan and write it as JSON."""

from multimodal.errors import UserError
from multimodal.planning.plan import check_writable, make_plan, write_plan
from multimodal.planning.report import render


def plan(config, args):
    """Plan a config for args.plan. Raises UserError for bad arguments."""
    if not (args.plan_examples.isascii() and args.plan_examples.isdigit()):
        raise UserError(f"--plan_examples: {args.plan_examples!r} is no number of examples")
    if args.plan_json:
        check_writable(args.plan_json)
    made = make_plan(
        config, args.plan, int(args.plan_examples), memory_alone=bool(args.plan_memory)
    )
    print(render(made))
    if args.plan_json:
        write_plan(made, args.plan_json)
