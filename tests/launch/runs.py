"""The run that every launcher is given."""

STEPS = 40
# Two devices share parameters, so that the processes exchange them in every step.
CONFIG = (
    "--config", "configs/clip.py:smoke", "--config.mesh.fsdp=2", "--config.data.eval_splits=()",
    "--config.eval.names=()", "--config.eval.best=", f"--config.steps={STEPS}",
    "--config.save_every=10",
)  # fmt: skip


def check_joined(text, how):
    """Assert that a log tells of two processes that found each other."""
    for number in range(2):
        assert f"process {number} of 2 ({how})" in text, text[-3000:]
