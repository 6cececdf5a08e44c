"""The recipes of docs/data.md: each config, as printed, reads files as printed."""

import io
import re
import wave

import pytest
from PIL import Image

from multimodal.config import load_config
from multimodal.errors import UserError
from multimodal.training import inputs
from multimodal.training.validate import validate
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
CONFIGS = dict(re.findall(r"^`(\w+)\.py`[^\n]*:\n\n```python\n(.*?)```", PAGE, re.M | re.S))
TABLES = re.findall(r"^```\n(data/\S+)\n(data/\S+), .*?```\n.*?^```\n([^`]+)```", PAGE, re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of all recipes, where the configs look for them: some rows of each split."""
    sound, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1000))
    for table, medium, content in TABLES:
        path, media = tmp_path / table, tmp_path / medium
        media.parent.mkdir(parents=True, exist_ok=True)
        media.write_bytes((sound if medium.endswith("wav") else picture).getvalue())
        *header, row = content.splitlines()
        assert media.name in row and "train" in row
        rows = [row, row, row.replace("train", "dev")]
        path.write_text("\n".join([*header, *rows]) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_four_recipes():
    assert len(CONFIGS) == len(TABLES) == 4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_recipe_reads_its_files(folder, name):
    (folder / f"{name}.py").write_text(CONFIGS[name])
    config = load_config(f"{name}.py", ["batch_size=2"])
    validate(config)
    train, dev = (inputs.get_source(config, split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (2, 1)
    tokenizer = inputs.get_tokenizer(config, None, train)
    batch = inputs.get_pipeline(config, train, tokenizer).batch(0)
    assert set(config.modalities) <= set(batch)
    with pytest.raises(UserError, match="'test'.*there are .*dev, train"):
        inputs.get_source(config, "test")
