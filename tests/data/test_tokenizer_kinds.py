"""CLIP's byte pairs and Unigram: known ids, odd captions, files."""

import gzip
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from multimodal.config import load_config
from multimodal.data import clip_bpe
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.errors import UserError
from multimodal.training.inputs import check_end
from tests.data.test_tokenizer import ODD

UNIGRAM = """
import sys
from multimodal.data.tokenizer import train_tokenizer
words = [f'{a}{b}{c}' for a in 'aeiouäöü红犬개ب' for b in 'xyzкл' for c in ('st', 'rn', 'मा', 'ツ')]
lines = [' '.join(words[i % 7::7]) for i in range(200)]
train_tokenizer(lines, {'vocab_size': 160, 'kind': 'unigram'}).save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """A list like CLIP's: real merges for a few words, the rest made up."""
    known = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>"), ("Ã", "©</w>")]
    letters = clip_bpe.byte_letters()
    others = [(a, b) for a in letters for b in letters if (a, b) not in known]
    lines = ["#version"] + [" ".join(m) for m in (known + others)[: clip_bpe.MERGES]]
    path = tmp_path_factory.mktemp("clip") / clip_bpe.FILE
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.fixture(scope="module")
def clip(merges):
    return Tokenizer.load(merges)


def test_layout(clip):
    assert clip.vocab_size == 49_408 and (clip.cls, clip.sep, clip.pad) == (49_406, 49_407, 0)
    assert clip.mask is None
    ids = clip.encode_batch(["A  Dog\n&CAT"], 8)[0].tolist()
    assert clip.tokens(ids)[:6] == ["<|startoftext|>", "a</w>", "dog</w>", "&</w>", "cat</w>",
                                    "<|endoftext|>"]  # fmt: skip
    assert ids[6:] == [0, 0] and clip.decode(ids) == "a dog & cat"
    assert clip.decode(clip.encode_batch(["! é !"], 9)[0]) == "! é !"


def test_special_tokens_in_a_caption_are_plain_text(clip):
    ids = clip.encode_batch(["<|endoftext|> <|startoftext|>"], 60)[0]
    assert (ids == clip.cls).sum() == 1 and (ids == clip.sep).sum() == 1


@pytest.mark.parametrize("kind", ["clip", "unigram"])
def test_odd_captions(kind, clip, tmp_path):
    used = clip if kind == "clip" else train_tokenizer(ODD * 3, {"vocab_size": 400, "kind": kind})
    used.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    ids = used.encode_batch(ODD, 12)
    assert ids.shape == (len(ODD), 12) and (ids >= 0).all() and (ids < used.vocab_size).all()
    assert (ids[:, 0] == used.cls).all() and (ids == used.sep).any(1).all()
    np.testing.assert_array_equal(again.encode_batch(ODD, 12), ids)
    assert [again.decode(row) for row in ids] == [used.decode(row) for row in ids]


def test_unigram_is_the_same_in_every_process(tmp_path):
    for name in "abc":
        subprocess.run([sys.executable, "-c", UNIGRAM, str(tmp_path / name)], check=True)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
    used = Tokenizer.load(tmp_path / "a")
    assert [getattr(used, k) for k in ("pad", "unk", "cls", "sep", "mask")] == [0, 1, 2, 3, 4]
    ids = used.encode_batch(["[MASK] axst"], 20)[0]
    assert used.mask not in ids and used.decode(used.encode_batch(["axst aykrn"], 20)[0])


def test_a_tower_that_pools_at_another_end_is_refused(clip):
    tower = load_config("configs/clip.py").modalities.text
    with pytest.raises(UserError, match="looks for token 3, and captions end with 49407"):
        check_end("text", tower, clip)
    for eot_id in (-1, 49_407):
        tower.eot_id = eot_id
        check_end("text", tower, clip)


OTHER = {"empty": b"", "no gzip": b"no gzip", "short": gzip.compress(b"#version\na b\n")}


# By name: gzip writes the time, and workers must find tests of the same names.
@pytest.mark.parametrize("content", OTHER.values(), ids=OTHER)
def test_another_file_is_refused(content, tmp_path):
    path = tmp_path / clip_bpe.FILE
    path.write_bytes(content)
    with pytest.raises(UserError, match="not CLIP's"):
        Tokenizer.load(path)


def test_where_no_package_has_it_the_error_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="config.tokenizer.path"):
        train_tokenizer([], {"kind": "clip", "vocab_size": 1})


def test_ids_of_the_original():
    """open_clip's own, where it is installed: 'a photo of a cat' is documented everywhere."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("open_clip_torch, whose wheel holds CLIP's merges, is not installed")
    path = pathlib.Path(spec.submodule_search_locations[0], clip_bpe.FILE)
    ids = Tokenizer.load(path).encode_batch(["a photo of a cat"], 8)[0]
    assert ids.tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
