"""Evaluators by name, and the tables made of their metrics."""

import pytest
from ml_collections import ConfigDict

from multimodal import evals
from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.evals.registry import EVALUATORS
from multimodal.evals.run import overridden, run_evals
from multimodal.evals.table import headline, table


@pytest.fixture
def config():
    return ConfigDict(dict(eval=dict(names=("retrieval",), batch_size=16, rerank=4)))


def test_a_new_evaluator_is_a_function_with_a_decorator(net, data, config):
    @evals.register("count_rows")
    def count_rows(net, data, cfg, mesh=None):
        return {f"{data.name}/{m}": len(rows) for m, rows in data.rows.items()}

    try:
        found = run_evals(net, config, None, ["count_rows"], [data])
    finally:
        del EVALUATORS["count_rows"]
    assert found == {"dev/image": 13, "dev/text": 39}
    with pytest.raises(UserError, match=r"config\.eval\.names.*did you mean retrieval"):
        run_evals(net, config, None, ["retreival"], [data])


def test_table_of_languages_with_and_without_reranking(net, data, config):
    metrics = run_evals(net, config, None, data_override=[data])
    text = table(metrics)
    plain, reranked = text.split("\n\n")
    assert plain.startswith("dev: 13 images, 39 texts\n")
    assert "re-ranked" in reranked.splitlines()[0]
    chance = ["chance", "chance in a group"]
    rows = [line.split("  ")[0] for line in plain.splitlines()[3:]]
    assert [r for r in rows if r[0] != "-"] == ["all", "English (en)", "German (de)", *chance]
    assert len({len(line) for line in plain.splitlines()[1:]}) == 1, "columns are aligned"
    english = next(line for line in plain.splitlines() if line.startswith("English")).split()
    expected = [metrics[f"dev/en/text_to_image/r{k}"] for k in (1, 5, 10)]
    assert [float(v) for v in english[2:5]] == pytest.approx([100 * v for v in expected], abs=0.05)
    assert table({"train/loss": 1.0}) == ""


def test_headline_has_whole_splits_only(net, data, config):
    names = headline(run_evals(net, config, None, data_override=[data]))
    assert {n.rpartition("/")[2] for n in names} == {
        "r1",
        "r5",
        "r10",
        "median_rank",
        "mrr",
        "mean_recall",
    }
    assert not any("/en/" in n for n in names)
    assert headline({"dev/zeroshot/top1": 0.5, "dev/zeroshot/chance": 0.1}) == {
        "dev/zeroshot/top1": 0.5
    }


def test_another_source_drops_the_kwargs_of_the_old():
    config = load_config("configs/emoji.py")
    changed = overridden(config, ["data.source=jsonl_folder", "data.kwargs.folder=x"])
    assert changed.data.kwargs.to_dict() == {"folder": "x"}
    assert overridden(config, ["eval.rerank=2"]).data.kwargs.name == "emoji_names"
    with pytest.raises(UserError, match="did you mean"):
        overridden(config, ["eval.rerunk=2"])
