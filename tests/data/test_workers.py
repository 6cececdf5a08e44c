"""Processes that make batches: the same content, errors that arrive, no process left behind."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from multimodal.data.array_source import ArraySource
from multimodal.data.pipeline import Pipeline
from multimodal.data.transforms import build_transforms
from multimodal.errors import UserError
from tests import processes

MODALITIES = {
    "image": dict(transform="image", size=16, augment="random_resized_crop", flip=True),
    "text": dict(transform="text", max_length=8),
}


@pytest.fixture
def build(noise, tokenizer):
    def make(bad=(), **kwargs):
        rows = [noise[i] for i in range(len(noise))]
        images = [b"broken" if i in bad else r["image"] for i, r in enumerate(rows)]
        source = ArraySource("train", image=images, text=[r["text"] for r in rows])
        return Pipeline(source, build_transforms(MODALITIES, True, tokenizer), 4, 0, **kwargs)

    return make


def take(pipeline, start, count):
    with pipeline.iterate(start) as batches:
        return [next(batches) for _ in range(count)]


def test_workers_change_nothing(build):
    plain, two = (take(build(workers=n, threads=2), 5, 7) for n in (0, 2))
    for a, b in zip(plain, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype and a[key].tobytes() == np.asarray(b[key]).tobytes()


def test_bad_records_are_counted_in_the_parent(build, caplog):
    plain, two = build({3, 7}, max_bad_share=0.1), build({3, 7}, max_bad_share=0.1, workers=2)
    for a, b in zip(take(plain, 0, 6), take(two, 0, 6), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert set(two.bad) == {3, 7} == set(plain.bad)
    assert caplog.text.count("record 3 replaced") == 2


@pytest.mark.parametrize("bad, share", [({3, 7, 11}, 0.1), (set(range(23)), 1.0)])
def test_errors_arrive(build, bad, share):
    with pytest.raises(UserError, match="unreadable"):
        take(build(bad, max_bad_share=share, workers=2), 0, 12)


def test_closed_iterator_stops(build):
    batches = build(workers=1).iterate()
    next(batches)
    batches.close()
    batches.close()
    assert list(batches) == []


PARENT = """
import multiprocessing, numpy, sys, time
from absl import flags
from multimodal.data.array_source import ArraySource
from multimodal.data.pipeline import Pipeline
from multimodal.data.transforms import build_transforms

def main():
    flags.FLAGS.mark_as_parsed()
    images = list(numpy.zeros((8, 4, 4, 3), numpy.uint8))
    transforms = build_transforms({"image": dict(transform="image", size=4)}, True)
    batches = Pipeline(ArraySource("x", image=images), transforms, 4, 0, workers=2).iterate()
    next(batches), next(batches)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    time.sleep(600)

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's death signal")
def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2 and all(map(processes.alive, pids))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    processes.wait_for(lambda: not any(map(processes.alive, pids)), 30)
