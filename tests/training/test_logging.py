"""metrics.jsonl, TensorBoard events, the progress bar and the loss curves."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from multimodal.errors import UserError
from multimodal.training.logging import MetricLogger, Progress, read_metrics
from multimodal.training.plots import loss_curves, smooth
from multimodal.training.tensorboard import EventWriter, masked_crc32c


def png(color="red", size=(20, 10)):
    data = io.BytesIO()
    Image.new("RGBA", size, color).save(data, "PNG")
    return data.getvalue()


def steps_of(workdir):
    return [row["step"] for row in read_metrics(workdir)]


def log_steps(workdir, steps, **kwargs):
    with MetricLogger(workdir, **kwargs) as logger:
        for step in steps:
            logger.write(step, {"train/loss": 1 / step})


def events(folder):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard (dev)"
    )
    return event_accumulator.EventAccumulator(str(folder)).Reload()


def test_crc32c_of_rfc_3720():
    unmasked = (masked_crc32c(bytes(32)) - 0xA282EAD8) & 0xFFFFFFFF
    crc = (unmasked << 15 | unmasked >> 17) & 0xFFFFFFFF
    assert crc == 0x8A9136AA


def test_tensorboard_reads_scalars_images_and_text(tmp_path):
    writer = EventWriter(tmp_path)
    writer.scalar(3, "train/loss", 0.25)
    writer.scalar(2**40, "train/loss", math.nan)
    writer.scalar(2**40 + 1, "train/loss", 1e300)
    writer.image(5, "top5", png(size=(20, 10)))
    writer.text(6, "note", "喜 **bold** \ud800")
    writer.close()
    read = events(tmp_path)
    first, second, third = read.Scalars("train/loss")
    assert (first.step, first.value) == (3, 0.25)
    assert second.step == 2**40 and math.isnan(second.value)
    assert third.value == math.inf
    (image,) = read.Images("top5")
    assert (image.step, image.width, image.height) == (5, 20, 10)
    assert image.encoded_image_string == png(size=(20, 10))
    (text,) = read.Tensors("note")
    assert text.tensor_proto.string_val[0].decode() == "喜 **bold** ?"
    assert read.SummaryMetadata("note").plugin_data.plugin_name == "text"


def test_an_image_must_be_a_png(tmp_path):
    with pytest.raises(ValueError, match="top5"):
        EventWriter(tmp_path).image(0, "top5", b"GIF89a")


def test_lines_are_whole_at_once_and_take_any_number(tmp_path):
    logger = MetricLogger(tmp_path)
    logger.write(np.int64(1), {"a/f": np.float32(0.5), "a/i": 3, "a/array": np.ones(())})
    assert read_metrics(tmp_path) == [{"step": 1, "a/f": 0.5, "a/i": 3, "a/array": 1.0}]
    logger.close()


def test_jax_numbers(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    with MetricLogger(tmp_path) as logger:
        logger.write(jnp.int32(1), {"a/b": jnp.float32(0.5), "a/c": jnp.bfloat16(2)})
    assert read_metrics(tmp_path) == [{"step": 1, "a/b": 0.5, "a/c": 2.0}]


def test_non_finite_numbers_are_valid_json(tmp_path):
    with MetricLogger(tmp_path) as logger:
        logger.write(1, {"a/nan": math.nan, "a/up": math.inf, "a/down": -math.inf})

    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=no_constants)["a/up"] == "Infinity"
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a/nan"]) and row["a/up"] == math.inf and row["a/down"] == -math.inf


def test_resuming_leaves_each_step_once(tmp_path):
    log_steps(tmp_path, range(1, 8))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "train/lo')  # killed here
    log_steps(tmp_path, range(6, 11), resume_step=5)
    assert steps_of(tmp_path) == list(range(1, 11))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10
    assert [event.step for event in events(tmp_path / "tb").Scalars("train/loss")] == list(
        range(1, 11)
    )


def test_starting_over_drops_everything(tmp_path):
    log_steps(tmp_path, range(1, 4))
    log_steps(tmp_path, range(1, 3))
    assert steps_of(tmp_path) == [1, 2]


def test_evaluation_appends_only(tmp_path):
    log_steps(tmp_path, range(1, 4))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step"')
    with MetricLogger(tmp_path, resume_step=None) as logger:
        logger.write(2, {"eval/r1": 0.5})
    assert steps_of(tmp_path) == [1, 2, 3, 2]
    assert len(events(tmp_path / "tb").Scalars("train/loss")) == 3


def test_other_processes_write_nothing(tmp_path, capsys):
    with MetricLogger(tmp_path / "w", 10, active=False) as logger:
        logger.write(1, {"train/loss": 1.0})
        logger.tick(1)
        logger.image(1, "a", png())
    assert not (tmp_path / "w").exists() and capsys.readouterr().err == ""


def test_progress_in_a_log_file(tmp_path, capsys):
    with MetricLogger(tmp_path, 1000) as logger:
        logger.write(10, {"train/loss": 2.34567, "train/samples_per_s": 1234.5})
        logger.write(10, {"eval/r1": 0.5})  # no bar for an evaluation
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 10/1,000  loss 2.346  1,234 samples/s  time left 0:")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_and_time_left():
    now = [0.0]
    stream = Terminal()
    bar = Progress(100, start=40, stream=stream, clock=lambda: now[0])
    for step, seconds in ((41, 60.0), (45, 64.0), (50, 69.0)):  # a minute of compiling
        now[0] = seconds
        bar.tick(step)
        bar.show(step, loss=1.0, samples_per_s=8.0)
    bar.close()
    last = stream.getvalue().split("\r")[-1]
    assert "[" in last and "50/100" in last and "loss 1" in last and "8 samples/s" in last
    assert "time left 0:50" in last and last.endswith("\n")


def test_loss_curves(tmp_path):
    with pytest.raises(UserError, match="no metrics"):
        loss_curves(tmp_path)
    with MetricLogger(tmp_path) as logger:
        for step in range(1, 60):
            loss = math.nan if step == 40 else 5 / step
            logger.write(
                step, {"train/loss": loss, "train/lr": 1e-4, "itm/loss": 0.7, "itm/acc": 0.6}
            )
        logger.write(59, {"eval/r1": 0.3})
    picture = Image.open(loss_curves(tmp_path))
    assert picture.format == "PNG" and min(picture.size) > 300


def test_smoothing_is_unbiased_and_bridges_gaps():
    assert np.allclose(smooth([2.0, math.nan, 2.0, 2.0], 3), 2.0)
    assert np.allclose(smooth([1.0, 5.0], 1), [1.0, 5.0])
