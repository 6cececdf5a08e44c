"""Subsets and ladders of noise on cases with a known answer; comparison of runs."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from multimodal.errors import UserError
from multimodal.evals import compare, report
from multimodal.evals.robustness import area, check_levels, effective, robustness
from multimodal.evals.table import headline, table
from tests.evals.toy import toy_data, toy_net

CFG = dict(batch_size=16, noise_levels=(0.0, 0.5, 1.0))


@pytest.fixture(scope="module")
def metrics():
    return robustness(toy_net(), toy_data(40, wrong_sounds=0.25), CFG)


def test_every_subset(metrics):
    both = {k.rpartition("/")[2]: v for k, v in metrics.items() if "both/subset" in k}
    assert both == {"image": 1, "audio": 0.75, "image+audio": 1}
    seen = [k for k in metrics if "/seen/" in k]
    assert "dev/robustness/seen/subset/image" in seen
    assert not any("audio" in k or "all" in k for k in seen), "it depends on the image alone"


def test_level_0_is_clean_and_the_area_is_that_of_the_curve(metrics):
    for name, corrupted in (("both", ("image", "audio", "all")), ("seen", ("image",))):
        clean = metrics[f"dev/robustness/{name}/subset/image" + ("+audio" * (name == "both"))]
        for m in corrupted:
            curve = [metrics[f"dev/robustness/{name}/noise/{m}/{v}"] for v in ("0", "0.5", "1")]
            assert curve[0] == clean
            assert curve[2] < clean or m == "audio", "at level 1 no content is left"
            expected = (curve[0] + curve[1]) / 4 + (curve[1] + curve[2]) / 4
            assert metrics[f"dev/robustness/{name}/noise/{m}/area"] == pytest.approx(expected)
    assert metrics["dev/robustness/seen/noise/image/1"] < 0.6


@pytest.mark.parametrize("batch_size", [7, 64])
def test_results_do_not_depend_on_batch_size(metrics, batch_size):
    again = robustness(
        toy_net(), toy_data(40, wrong_sounds=0.25), CFG | dict(batch_size=batch_size)
    )
    assert again == metrics


def test_embeddings_without_classifiers_are_measured_by_retrieval():
    data = toy_data(5)
    rng = np.random.default_rng(0)
    data.rows["image"] = (200 * np.eye(5)).astype(np.uint8)
    data.rows["audio"] = (rng.permutation(100)[:5, None] * np.eye(5)).astype(np.float32) + 1e-3
    found = robustness(toy_net(classifiers={}), data, CFG)
    assert {k.split("/")[2] for k in found} == {"image_to_audio", "audio_to_image"}
    assert found["dev/robustness/image_to_audio/subset/image+audio"] == 1
    for m in ("image", "audio", "all"):
        assert found[f"dev/robustness/audio_to_image/noise/{m}/0"] == 1
        assert found[f"dev/robustness/audio_to_image/noise/{m}/1"] < 1
    assert "R@1 of image -> audio" in table(found)


def test_area_and_effective_robustness():
    levels = (0.0, 0.2, 1.0)
    assert area(levels, [0.5, 0.5, 0.5]) == pytest.approx(0.5)
    assert area((0.2, 0.6), [1, 0]) == 0.5
    reference = np.array([0.9, 0.5, 0.3])
    assert effective(levels, reference - 0.2, reference) == pytest.approx(0), "shifted only"
    better = np.array([0.7, 0.7, 0.1])
    assert effective(levels, better, reference) == pytest.approx(0.2 * 0.4 / 2 + 0.8 * 0.4 / 2)
    for wrong in ((0.0,), (0.5, 1.0), (0.0, 1.0, 0.5), (0.0, 1.5)):
        with pytest.raises(UserError, match="noise_levels"):
            check_levels(wrong)


def test_tables_headline_and_picture(metrics, tmp_path):
    text = table(metrics)
    assert "dev: both, by modalities present" in text
    assert "dev: seen, by level of noise on" in text
    kept = headline(metrics)
    assert "dev/robustness/both/noise/all/area" in kept
    assert not any(k.endswith(("/0.5", "/majority", "/count")) for k in kept)
    (path,) = report.robustness_pictures(metrics, tmp_path / "pictures", 7)
    assert path.name == "robustness_dev.png"
    assert Image.open(path).size[0] > 600


@pytest.fixture
def runs(metrics, tmp_path):
    """Three runs: two alike but for the score, and one under another folder of the same name."""
    for i, run in enumerate(("a/best", "b/best", "late")):
        folder = tmp_path / run / "eval"
        folder.mkdir(parents=True)
        lower = {k: v - 0.01 * i if "/noise/" in k else v for k, v in metrics.items()}
        (folder / "10.json").write_text(json.dumps(lower))
        (folder / "9.json").write_text("{}")
    return [str(tmp_path / run) for run in ("a/best", "b/best", "late")]


def test_comparison_of_runs(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["compare", *runs, "--reference", runs[2], "--out", str(out)])
    compare.main()
    text = (out / "compare.md").read_text()
    assert text in capsys.readouterr().out
    assert "## dev: both" in text and "| a/best |" in text and "| late   |" in text
    heads = ["method", "clean", "image", "audio", "area", "effective"]
    assert all(h in text for h in heads)
    blocks = json.loads((out / "compare.json").read_text())["blocks"]
    best = blocks["dev: both"]["a/best"]
    assert best["effective"] == pytest.approx({"audio": 0, "image": 0, "all": 0}), "shifted"
    assert best["clean"] == 1 and best["subset"]["audio"] == 0.75
    assert Image.open(out / "compare.png").size[0] > 900


def test_comparison_says_what_is_wrong(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "new").mkdir()
    (tmp_path / "other" / "eval").mkdir(parents=True)
    (tmp_path / "other" / "eval" / "5.json").write_text('{"dev/mean_recall": 1.0}')
    for args, message in (
        ([], "no RUN is given"),
        ([runs[0], "--referense", "x"], "unknown argument --referense"),
        ([runs[0], str(tmp_path / "new")], "no eval/STEP.json"),
        ([runs[0], str(tmp_path / "other")], "--evals robustness"),
        ([runs[0], "--reference", str(tmp_path / "no")], "no eval/STEP.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["compare", *args])
        with pytest.raises(SystemExit) as stop:
            compare.main()
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1
