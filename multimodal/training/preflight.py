"""What the evaluation after the last step would stumble over, told before the first one."""

from multimodal.errors import UserError


def preflight(config, tokenizer):
    """Raise UserError now for what the evaluation after the last step would stumble over."""
    from multimodal.evals.data import load_eval_data
    from multimodal.evals.registry import evaluator

    for name in config.eval.names:
        evaluator(name)
    for data in load_eval_data(config, tokenizer) if config.eval.names else ():
        check_labels(config, data)
    if config.eval.best and not config.eval.names:
        raise UserError(
            f"config.eval.best is {config.eval.best!r}, but config.eval.names is empty: nothing is "
            "evaluated; set eval.best=''"
        )
    best = config.eval.best.partition("/")[0]
    if best and best not in config.data.eval_splits:
        raise UserError(
            f"config.eval.best: {config.eval.best!r} is no metric of the splits "
            f"{', '.join(config.data.eval_splits)}; its name starts with the split"
        )
    if config.eval.rerank and "match" not in config.model.heads:
        raise UserError("config.eval.rerank needs the head 'match': add it to config.model.heads")


def check_labels(config, data):
    """Raise UserError where a classifier's labels are missing or of another kind."""
    for name, c in config.model.classifiers.items():
        if c.target not in data.targets:
            there = ", ".join(data.targets) or "no label at all"
            raise UserError(
                f"config.model.classifiers.{name}.target: split {data.name!r} has no {c.target!r}; "
                f"it has {there}"
            )
        labels = data.targets[c.target]
        if c.multi != (labels.ndim == 2):
            raise UserError(
                f"config.model.classifiers.{name}.multi is {c.multi}, but {c.target} of split "
                f"{data.name!r} has {'several labels' if labels.ndim == 2 else 'one label'} each"
            )
        classes = labels.shape[1] if c.multi else int(labels.max()) + 1
        if classes > c.classes or (c.multi and classes != c.classes):
            raise UserError(
                f"config.model.classifiers.{name}.classes is {c.classes}, but {c.target} of split "
                f"{data.name!r} has {classes} classes"
            )
