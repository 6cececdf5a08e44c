"""SentencePiece's BPE models: pieces as the library's own and as its rule, symbols, damage."""

import random
import time

import numpy as np
import pytest

from multimodal.data.tokenizer import Tokenizer
from multimodal.errors import UserError
from tests.data.test_sentencepiece import TEXTS, load, message, number, plain

UNK, BYTES = [("<unk>", 2)], [(f"<0x{i:02X}>", 6) for i in range(256)]
LETTERS = "abc▁"
PLAIN = ((3, 0), (4, 0))  # of the normaliser's part: no dummy prefix, spaces as they are


def model(words, specials=UNK, rules=(), trainer=()):
    """Bytes of a BPE model: special pieces [(name, type)], words [(name, score)]."""
    pieces = [message((1, n), (2, 0.0), (3, t)) for n, t in specials]
    pieces += [message((1, n), (2, float(s))) for n, s in words]
    parts = message((2, message((3, 2), *trainer)), (3, message(*rules)))
    return b"".join(b"\x0a" + number(len(p)) + p for p in pieces) + parts


def letters(names, start=-1000):
    return [(name, start - i) for i, name in enumerate(names)]


def pieces(used, text):
    return used.tokens(used._encode([text])[0].ids)


def by_the_rule(text, scores):
    """Of all neighbours that make a piece the best are merged, the first of equals."""
    parts = list(text)
    while True:
        found = [(-scores[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
                 if a + b in scores]  # fmt: skip
        if not found:
            return parts
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def some_words(rng):
    """Pieces whose scores have nothing to do with what they are made of."""
    names = {"".join(rng.choices(LETTERS, k=rng.randint(2, 6))) for _ in range(120)}
    names |= {name[:i] for name in names for i in range(2, len(name)) if rng.random() < 0.7}
    names = sorted(names)
    return letters(LETTERS) + list(zip(names, rng.sample(range(-900, 900), len(names))))


@pytest.mark.parametrize("seed", range(8))
def test_pieces_by_the_rule(seed, tmp_path):
    rng = random.Random(seed)
    words = some_words(rng)
    used, scores = load(tmp_path, model(words, rules=PLAIN)), dict(words)
    for _ in range(200):
        text = "".join(rng.choices(LETTERS, k=rng.randint(0, 40)))
        assert pieces(used, text.replace("▁", " ")) == by_the_rule(text, scores)


def test_the_first_of_equal_pairs_is_merged(tmp_path):
    used = load(tmp_path, model([("aaa", -1), ("aa", -2), ("a", -3)], rules=PLAIN))
    assert pieces(used, "a" * 7) == ["aaa", "aaa", "a"]
    assert pieces(used, "a" * 20_000) == ["aaa"] * 6666 + ["aa"]


def test_symbols_are_cut_out_first_and_never_merged(tmp_path):
    specials = [*UNK, ("<s>", 3), *((n, 4) for n in ("<t>", "<t>>", "ab", "▁▁", "\n"))]
    words = letters("▁abc<>st/") + [("abc", -1), ("bc", -2), ("<s", -3), ("<s>>", -4), ("ca", -5)]
    used = load(tmp_path, model(words, specials, PLAIN, [(41, 1)]))
    assert pieces(used, "<t>>bcabc") == ["<t>>", "bc", "ab", "c"]
    assert pieces(used, "c   a\n") == ["c", "▁▁", "▁", "a", "\n"]
    assert pieces(used, "<t><s><t>") == ["<t>", "<s", ">", "<t>"]  # a name of a special token
    used.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    for text in ("<t><s><t>", "<t><unk><t><pad>", "ab<s>  abc"):
        assert not {used.cls, used.pad, used.mask} & set(used._encode([text])[0].ids)
        np.testing.assert_array_equal(again.encode_batch([text], 30), used.encode_batch([text], 30))


def test_a_piece_that_merges_do_not_reach_is_not_found_between_symbols(tmp_path):
    words = letters("▁abc") + [("ab", -1), ("bc", -2), ("cabc", -3)]
    used = load(tmp_path, model(words, [*UNK, ("<t>", 4)], PLAIN))
    assert pieces(used, "<t>cabc<t>") == ["<t>", "c", "ab", "c", "<t>"]


def test_bytes_and_runs_of_unknown_characters(tmp_path):
    words = letters("▁a") + [("▁a", -1)]
    used = load(tmp_path, model(words))
    assert pieces(used, "a犬猫 a") == ["▁a", "<unk>", "▁a"]
    used = load(tmp_path, model(words, [*UNK, *BYTES], trainer=[(35, 1)]))
    ids = used.encode_batch(["a犬 a"], 10)[0]
    assert used.tokens(ids[1:6]) == ["▁a", "<0xE7>", "<0x8A>", "<0xAC>", "▁a"]
    assert used.decode(ids) == "a犬 a" and (used.pad, used.unk) == (0, 1)


@pytest.mark.parametrize(
    ("words", "specials", "why"),
    [
        ([("a", -1), ("b", -2), ("ab", -3), ("ba", -3)], UNK, "'ba' and 'ab' have the same score"),
        ([("a", -1), ("ab", -3)], UNK, "a character of 'ab' is no piece"),
        ([("a", -1), ("b", -2)], [*UNK, ("ab", 5)], "unused piece 'ab'"),
        ([("a", -1), ("a" * 2**20, -2)], UNK, "too long"),
        ([("a", -1), ("a", -2)], UNK, "repeated"),
        ([("a", float("nan"))], UNK, "score nan"),
        ([("<s>", -1)], [*UNK, ("[CLS]", 3)], "name of a special token"),
        ([("a", -1)], [], "no unknown piece"),
        ([], [], "no pieces"),
        ([], [*UNK, *((f"a{i}", 4) for i in range(10_001))], "too many user-defined"),
    ],
)
def test_what_the_library_cannot_follow_is_one_line(words, specials, why, tmp_path):
    with pytest.raises(UserError, match=f"x.model: .*{why}") as caught:
        load(tmp_path, model(words, specials))
    assert "\n" not in str(caught.value)


def test_the_longest_text_takes_no_time(tmp_path):
    words = letters("▁ab") + [("ab" * 2**i, -i) for i in range(8)]
    used, began = load(tmp_path, model(words)), time.monotonic()
    (found,) = used._encode(["ab" * 10_000])
    assert len(found.ids) < 100 and time.monotonic() - began < 5


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")


CONFIGS = {
    "default": {},
    "llama": dict(
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True,
    ),
    "gemma": dict(
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=["<tag>", "\n", "\n\n", "▁▁", "▁▁▁", "dog"],
    ),
    "symbols": dict(user_defined_symbols=["<tag>", "<tag>>", "犬", "o", "▁a"]),
    "crossing": dict(split_by_whitespace=False),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_pieces_of_the_library(name, library, tmp_path):
    lines = [t for t in map(plain, TEXTS) if 0 < len(t) < 1000 and "\0" not in t] * 3
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "x"), vocab_size=600,
        minloglevel=2, model_type="bpe", hard_vocab_limit=False, **CONFIGS[name],
    )  # fmt: skip
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "x.model"))
    ours, moved = Tokenizer.load(tmp_path / "x.model"), 0 if theirs.pad_id() == 0 else 1
    more = ["a  dog\n\n\n b ", "  a", "dog<tag><tag>> oa", "\r\t犬o犬", "<s><tag></s>"]
    for text in [*map(plain, TEXTS), *more]:
        (found,) = ours._encode([text])
        assert found.ids == [i + moved for i in theirs.encode(text)], text[:60]
        if ours.unk not in found.ids:
            assert ours.decode(found.ids) == theirs.decode([i - moved for i in found.ids])


@pytest.mark.parametrize("seed", range(4))
def test_any_scores_as_the_library(seed, library, tmp_path):
    rng = random.Random(seed)
    words, symbols = some_words(rng), ["ca", "▁b▁"] if seed % 2 else []
    words = [(name, score) for name, score in words if name not in symbols]
    data = model(words, [*UNK, *((name, 4) for name in symbols)], PLAIN)
    theirs, ours = library.SentencePieceProcessor(model_proto=data), load(tmp_path, data)
    for _ in range(200):
        text = "".join(rng.choices("abc ", k=rng.randint(0, 60)))
        assert [i - 1 for i in ours._encode([text])[0].ids] == theirs.encode(text)


def test_damage_is_refused_or_harmless(tmp_path):
    rng, refused = random.Random(0), 0
    data = model(some_words(rng), [*UNK, ("<t>", 4), *BYTES], trainer=[(35, 1)])
    for _ in range(300):
        bad = bytearray(data)
        bad[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            load(tmp_path, bytes(bad)).encode_batch([t[:300] for t in TEXTS], 20)
        except UserError:
            refused += 1
    assert 0 < refused < 300
