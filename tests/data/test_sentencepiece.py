"""SentencePiece's .model files: ids, special tokens, damage; pieces as the library's own."""

import random
import struct

import numpy as np
import pytest

from multimodal.data import sentencepiece_model as sp
from multimodal.data.tokenizer import Tokenizer, train_tokenizer
from multimodal.errors import UserError
from tests.data.test_tokenizer import ODD

TEXTS = [
    *ODD, "ein roter Hund im Gras", "红色的狗在草地上", "赤い犬が走る、東京で。",
    "ｶﾞﾊﾟ Å ﬁ ² e\u0301", "كلب أحمر ﷺ",
    "लाल कुत्ता हिन्दी", "빨간 개", "😀 👨‍👩‍👧 👍🏽", " a  b\t\u3000c ", "\0", "a\0b", "",
    "a \n b", "x" * 20_000, "犬 " * 10_000,
    "<s> </s> <pad> <unk> <mask> [MASK]",
]  # fmt: skip


def number(n):
    n &= 2**64 - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def message(*fields):
    """A protobuf message of (field, value): int, float, str or bytes."""
    out = b""
    for field, value in fields:
        if isinstance(value, int):
            out += number(field << 3) + number(value)
        elif isinstance(value, float):
            out += number(field << 3 | 5) + struct.pack("<f", value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += number(field << 3 | 2) + number(len(value)) + value
    return out


WORDS = [("▁", -2.0), ("▁dog", -1.0), ("▁cat", -1.5), *((c, -4.0) for c in "dogcatsmk<>/[]")]


def model(specials, ids, words=WORDS, kind=1, rules=(), more=()):
    """Bytes of a model: special pieces [(name, type)], the trainer's ids {field: id}."""
    pieces = [message((1, n), (2, 0.0), (3, t)) for n, t in specials]
    pieces += [message((1, n), (2, s)) for n, s in words]
    trainer = message((3, kind), *ids.items(), *more)
    return message(*((1, p) for p in pieces), (2, trainer), (3, message(*rules)))


DEFAULT = model([("<unk>", 2), ("<s>", 3), ("</s>", 3)], {40: 0, 41: 1, 42: 2, 43: -1})
T5 = model([("<pad>", 3), ("</s>", 3), ("<unk>", 2)], {40: 2, 41: -1, 42: 1, 43: 0})
ALBERT = model([("<pad>", 3), ("<unk>", 2), ("[CLS]", 3), ("[SEP]", 3), ("[MASK]", 3)], {40: 1})


def load(tmp_path, data):
    (tmp_path / "x.model").write_bytes(data)
    return Tokenizer.load(tmp_path / "x.model")


@pytest.mark.parametrize(
    ("data", "roles", "dog"),
    [
        (DEFAULT, (0, 1, 2, 3, 4 + len(WORDS)), 5),  # pad is put first, mask last
        (T5, (0, 2, 3 + len(WORDS), 1, 4 + len(WORDS)), 4),  # the file's ids
        (ALBERT, (0, 1, 2, 3, 4), 6),
    ],
)
def test_special_ids(data, roles, dog, tmp_path):
    used = load(tmp_path, data)
    found = tuple(getattr(used, role) for role in ("pad", "unk", "cls", "sep", "mask"))
    assert found == roles and used.vocab_size == max(*roles, dog + len(WORDS) - 2) + 1
    ids = used.encode_batch(["dog  cats"], 8)[0].tolist()
    assert ids[:2] == [used.cls, dog] and used.tokens(ids[2:5]) == ["▁cat", "s", "</s>"]
    assert used.decode(ids) == "dog cats"
    special = {used.pad, used.cls, used.sep, used.mask}
    for text in ("<s>", "</s> <mask> [MASK] <pad> [CLS]", "dog<s>"):
        inner = used.encode_batch([text], 40)[0].tolist()
        assert not special & set(inner[1 : inner.index(used.sep)])
    used.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(again.encode_batch(TEXTS, 60), used.encode_batch(TEXTS, 60))


def test_names_of_special_tokens_are_text_to_a_trained_unigram_too():
    cfg = {"vocab_size": 40, "kind": "unigram", "lower": False}
    used = train_tokenizer(["[MASK] [CLS] a"] * 3, cfg)
    assert used.mask not in used.encode_batch(["a [MASK] [CLS]"], 40)[0]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no pieces"),
        (b"not a model", "not a SentencePiece model"),
        (DEFAULT[:-3], "cut off"),
        (model([("<unk>", 2)], {}, kind=3), "word model, and only Unigram and BPE"),
        (model([("<unk>", 3)], {}), "no unknown piece"),
        (model([("<unk>", 2)], {}, words=[("a", -1.0), ("a", -2.0)]), "repeated"),
        (model([("<unk>", 2)], {}, words=[("a", float("nan"))]), "score nan"),
        (model([("<unk>", 2)], {}, rules=[(2, b"\x08\0\0\0" + bytes(8))]), "normalisation table"),
        (model([("<unk>", 2)], {}, more=[(24, 1)]), "whitespace_as_suffix"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "cut off"),
    ],
)
def test_what_is_no_model_is_one_line(data, why, tmp_path):
    with pytest.raises(UserError, match=f"x.model: .*{why}") as caught:
        load(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "x.model", "wb") as f:
        f.truncate(sp._LIMIT + 1)
    with pytest.raises(UserError, match="larger than"):
        Tokenizer.load(tmp_path / "x.model")


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")


CONFIGS = {
    "default": {},
    "t5": dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "folded": dict(normalization_rule_name="nmt_nfkc_cf", byte_fallback=True),
    "identity": dict(normalization_rule_name="identity", split_by_whitespace=False),
    "spaces": dict(remove_extra_whitespaces=False),
    "bare": dict(add_dummy_prefix=False, remove_extra_whitespaces=False),
}


def plain(text):
    """A text without what cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode()[:20_000]


def learn(library, path, **kwargs):
    lines = [t for t in map(plain, TEXTS) if 0 < len(t) < 1000 and "\0" not in t] * 3
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(path), vocab_size=400, minloglevel=2,
        model_type="unigram", hard_vocab_limit=False, **kwargs,
    )  # fmt: skip
    return path.with_suffix(".model")


@pytest.mark.parametrize("name", CONFIGS)
def test_pieces_of_the_library(name, library, tmp_path):
    path = learn(library, tmp_path / "x", **CONFIGS[name])
    theirs, ours = library.SentencePieceProcessor(model_file=str(path)), Tokenizer.load(path)
    moved = 0 if theirs.pad_id() == 0 else 1
    for text in map(plain, TEXTS):
        (found,) = ours._encode([text])
        assert found.ids == [i + moved for i in theirs.encode(text)], text[:60]
    assert ours.tokens([moved + theirs.unk_id()]) == ["<unk>"]


def test_damage_is_refused_or_harmless(library, tmp_path):
    data, rng, refused = learn(library, tmp_path / "x").read_bytes(), random.Random(0), 0
    for _ in range(60):
        bad = bytearray(data)
        # Half of the flips among the pieces, which are first; the table of characters is longer.
        bad[rng.randrange(rng.choice((4000, len(data))))] ^= 1 << rng.randrange(8)
        try:
            load(tmp_path, bytes(bad)).encode_batch([t[:300] for t in TEXTS], 20)
        except UserError:
            refused += 1
    assert 0 < refused < 60
    for cut in range(0, len(data), len(data) // 20):
        with pytest.raises(UserError):
            load(tmp_path, data[:cut])
