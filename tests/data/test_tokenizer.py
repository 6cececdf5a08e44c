"""Tokenizer: odd captions, determinism, files."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from multimodal.data import wordpiece
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.errors import UserError

ODD = [
    "", "   \t\n ", "a dog\x00with a NUL", "\x07\x1b[31m", "👩‍👩‍👧‍👦 🏳️‍🌈",
    "a very long caption " * 1000,
    "x" * 5000, "كلب يركض", "d̵̡̛o̷̢͝g̶̛", "一只狗在海滩上奔跑", "कुत्ता", "犬がビーチを走る",
    "해변", "cafe\u0301",
    "dog \u202e gnol \u202c", "<b>dog</b> &amp;", "\ufeffa dog", "\ud800", "a\udfffb",
]  # fmt: skip
TRAIN = """
import sys
from multimodal.data.tokenizer import train_tokenizer
import random
rng = random.Random(0)  # many words of the same frequency: ties between merges
words = [''.join(rng.choices('abcdefghijklm红犬개ب', k=rng.randint(2, 9))) for _ in range(4000)]
train_tokenizer(words * 2, {'vocab_size': 2048}).save(sys.argv[1])
"""


def test_special_ids(tokenizer):
    ids = [getattr(tokenizer, k) for k in ("pad", "unk", "cls", "sep", "mask")]
    assert ids == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ODD)
def test_odd_captions(tokenizer, text):
    ids = tokenizer.encode_batch([text], 12)
    assert ids.shape == (1, 12) and ids.dtype == np.int32
    row = ids[0][ids[0] != tokenizer.pad]
    assert row[0] == tokenizer.cls and row[-1] == tokenizer.sep
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()
    assert isinstance(tokenizer.decode(ids[0]), str)


def test_odd_captions_of_the_shared_set(shared, tokenizer):
    path = shared / "data" / "bad_inputs" / "text" / "captions.jsonl"
    if not path.exists():
        pytest.skip("no ../shared/data/bad_inputs")
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert tokenizer.encode_batch(texts, 16).shape == (len(texts), 16)
    again = train_tokenizer(texts * 2, {"vocab_size": 500})
    assert again.encode_batch(texts, 16).max() < again.vocab_size


def test_special_tokens_in_a_caption_are_plain_text(tokenizer):
    ids = tokenizer.encode_batch(["[CLS] [MASK] [SEP] [PAD] dog"], 40)[0]
    assert (ids == tokenizer.cls).sum() == 1 and (ids == tokenizer.sep).sum() == 1
    assert tokenizer.mask not in ids


def test_round_trip(tokenizer):
    for text in ("a red dog", "ein roter hund", "كلب أحمر", "빨간 개"):
        assert tokenizer.decode(tokenizer.encode_batch([text], 30)[0]) == text
    chinese = tokenizer.decode(tokenizer.encode_batch(["红色的狗"], 30)[0])
    assert chinese.replace(" ", "") == "红色的狗"


def test_batch_equals_single(tokenizer):
    texts = ["a red dog", "un chien rouge", "", "红色的狗"] * 40
    whole = tokenizer.encode_batch(texts, 7)
    single = [tokenizer.encode_batch([t], 7)[0] for t in texts]
    np.testing.assert_array_equal(whole, single)


def test_truncation_keeps_the_separator(tokenizer):
    ids = tokenizer.encode_batch(["a red dog " * 9], 5)[0]
    assert ids[0] == tokenizer.cls and ids[-1] == tokenizer.sep and (ids != 0).all()
    with pytest.raises(UserError, match="no room"):
        tokenizer.encode_batch(["a"], 1)


def test_add_sep_false_as_in_albef(tmp_path):
    tokenizer = train_tokenizer(["a red dog"] * 3, {"vocab_size": 60, "add_sep": False})
    assert tokenizer.sep not in tokenizer.encode_batch(["a red dog"], 9)
    tokenizer.save(tmp_path / "t.json")
    assert not Tokenizer.load(tmp_path / "t.json").add_sep
    assert Tokenizer.load(tmp_path / "t.json", {"add_sep": True}).add_sep


def test_save_load_pickle(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    texts = ["a red dog [MASK]", "红色", ""]
    want = tokenizer.encode_batch(texts, 12)
    for other in (Tokenizer.load(path), pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(other.encode_batch(texts, 12), want)
        assert other.vocab_size == tokenizer.vocab_size
    standard = tokenizers.Tokenizer.from_file(str(path)).encode("a red dog").ids
    ids = tokenizer.encode_batch(["a red dog"], 12)[0]
    assert standard == ids[ids != 0].tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("lower", [True, False])
def test_words_of_many_texts_are_those_of_each(lower, monkeypatch):
    rng = np.random.default_rng(0)
    odd = "\n\r\t \u2028\u0130\u03a3\u0301\u0345\u200d犬a.Z"
    texts = ["".join(rng.choice([*odd], rng.integers(0, 9))) for _ in range(1000)] + ["", ""]
    found = wordpiece._count_words(texts, lower)
    monkeypatch.setattr(wordpiece, "_LINES", 1)
    assert list(found.items()) == list(wordpiece._count_words(texts, lower).items())


def test_training_is_deterministic_across_processes(tmp_path):
    files = [tmp_path / f"{i}.json" for i in range(3)]
    for f in files:
        subprocess.run([sys.executable, "-c", TRAIN, str(f)], check=True, timeout=60)
    assert len({f.read_bytes() for f in files}) == 1
    assert Tokenizer.load(files[0]).vocab_size == 2048  # So ties had to be decided.


def test_bert_vocabulary(tmp_path):
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "##s", "cafe"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path / "vocab.txt")
    assert tokenizer.encode_batch(["Dogs Café x"], 8).tolist() == [[3, 6, 7, 8, 2, 4, 0, 0]]
    assert (tokenizer.cls, tokenizer.mask, tokenizer.vocab_size) == (3, 5, 9)


@pytest.mark.parametrize("name, text", [
    ("a.json", "{"), ("b.json", "[]"), ("c.json", '{"a": 1}'), ("vocab.txt", "dog\ncat"),
    ("d.txt", "[PAD]\n[UNK]\n"), ("e.txt", "[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n"),
])  # fmt: skip
def test_wrong_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError):
        Tokenizer.load(tmp_path / name)
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path / "missing.json")


def test_mismatch_with_the_model_is_seen(tokenizer):
    tokenizer.check_vocab(tokenizer.vocab_size)
    with pytest.raises(UserError, match="do not belong together"):
        tokenizer.check_vocab(tokenizer.vocab_size - 1)


@pytest.mark.parametrize("captions, cfg", [
    ([], {"vocab_size": 100}), (["", " "], {"vocab_size": 100}), (["dog"] * 3, {"vocab_size": 5}),
    (["dog"], {"vocab_size": 100, "kind": "clip_bpe"}),
])  # fmt: skip
def test_nothing_to_train_on(captions, cfg):
    with pytest.raises(UserError):
        train_tokenizer(captions, cfg)
