"""SentencePiece's `.model` files (Unigram, BPE) as a tokenizer of the `tokenizers` library.

The file is a protobuf, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto;
of it pieces, scores and normalisation are read here, nothing is executed, and sizes and tables are
checked, because the library trusts them.
"""

import itertools
import math
import struct

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from multimodal import paths
from multimodal.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
ROLES = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_OTHER_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_IDS = {"cls": 41, "sep": 42, "pad": 43}  # fields of the trainer's part
UNIGRAM, BPE = 1, 2
_OTHER_MODELS = {3: "word", 4: "character"}
_LIMIT = 64 * 2**20  # bytes; the largest known have 5 million
_MAX_WORK = 2**27  # squares of the lengths of BPE's pieces; 256,000 of 16 characters have 2**26
_MAX_SYMBOLS = 10_000, 200_000  # user-defined pieces of a BPE model, and their characters
_SPACE = "▁"


def backend(path) -> Tokenizer:
    """A `tokenizers.Tokenizer` of a .model file, by path or URL.

    Padding must be 0 here. Where it is in the file, ids are the file's; otherwise it is put first
    and the ids of the others move up by one. Special tokens that the file lacks come last.

    Pieces are those of SentencePiece, except where several accents stand on one character in
    another order than Unicode's own, where what the rules change (a capital, a carriage return
    before a new line) is one with what follows it, and for a literal '▁' or '<0x41>' in a text.
    Raises UserError for a file that is damaged, too large or of another kind than Unigram and BPE,
    and for a BPE model that the library cannot follow: see `_merges`.
    """
    try:
        if paths.size(path) > _LIMIT:
            raise UserError(f"{path}: larger than {_LIMIT} bytes: not a SentencePiece model")
        data = paths.read(path)
    except OSError as e:
        raise UserError(f"cannot read the tokenizer {str(path)!r} ({e})") from None
    try:
        pieces, trainer, rules = _parse(data)
        kind = trainer.get(3, UNIGRAM)
        if kind not in (UNIGRAM, BPE):
            kind = _OTHER_MODELS.get(kind, kind)
            raise ValueError(f"it is a {kind} model, and only Unigram and BPE are read")
        vocab = _vocabulary(pieces, trainer)
        model, symbols = _unigram(vocab, pieces) if kind == UNIGRAM else _bpe(vocab)
        return _build(model, [name for name, *_ in vocab], symbols, trainer, rules)
    except UserError:
        raise
    except Exception as e:  # the library raises plain ones
        raise UserError(f"{path}: not a SentencePiece model ({e!s:.150})") from None


def _build(model, names, symbols, trainer, rules):
    if not rules.get(5, 1) or trainer.get(24, 0):
        raise ValueError("escape_whitespaces=false, treat_whitespace_as_suffix: not supported")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(rules, symbols)
    # Words are looked up one by one, unless a piece has the end of one and the start of another,
    # or the space between them is unknown, and one with unknown neighbours.
    apart = _SPACE in names and not any(_SPACE in name[1:] for name in names)
    splits = [pre_tokenizers.Metaspace(_SPACE, "never", apart)]
    if symbols:
        splits.append(pre_tokenizers.Split(Regex(_any_of(symbols)), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    ends = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")]
    if rules.get(3, 1):
        ends.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer


def _normalizer(rules, symbols):
    """The rules of a model, but for a user-defined symbol that they would change: ValueError."""
    steps = []
    if charsmap := rules.get(2, b""):
        _check_charsmap(charsmap)
        # The library looks up single characters; what several make together is NFKC's.
        steps += [normalizers.NFKC()] if "nfkc" in _text(rules.get(1, b"")) else []
        steps.append(normalizers.Precompiled(charsmap))
    change = normalizers.Sequence(steps)
    for symbol in symbols:
        if change.normalize_str(symbol).replace(" ", _SPACE) != symbol:
            raise ValueError(f"its normalisation changes the symbol {symbol!r}: not supported")
    prefix = [normalizers.Prepend(_SPACE)] if rules.get(3, 1) else []  # add_dummy_prefix
    if not rules.get(4, 1):  # remove_extra_whitespaces
        return normalizers.Sequence([*prefix, *steps])  # also for a text that becomes empty
    steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
    return normalizers.Sequence([*steps, *prefix])


def _any_of(symbols):
    """A regular expression for the longest of these that a place in a text starts with."""
    rests = {}
    for first, *rest in sorted(symbols, key=len, reverse=True):
        rests.setdefault(first, []).append("".join(map(_escape, rest)))
    return "|".join(f"{_escape(first)}(?:{'|'.join(r)})" for first, r in rests.items())


def _escape(character):
    return f"\\x{{{ord(character):x}}}"


def _unigram(vocab, pieces):
    """(model, symbols to split at before it)."""
    best = max((s for _, s, kind in pieces if kind == NORMAL), default=0.0)
    entries = []
    for name, score, kind in vocab:
        if kind == UNUSED:
            name, score = name + " ", 0.0  # there are no spaces in what the model splits
        elif kind == USER_DEFINED:  # always preferred: SentencePiece's own formula
            score = len(name) * best - 0.1
        entries.append((name, score))
    unk = [name for name, _ in entries].index(ROLES["unk"])
    return models.Unigram(entries, unk, any(kind == BYTE for *_, kind in vocab)), []


def _bpe(vocab):
    """(model, symbols to split at before it)."""
    symbols = [name for name, _, kind in vocab if kind == USER_DEFINED]
    if len(symbols) > _MAX_SYMBOLS[0] or sum(map(len, symbols)) > _MAX_SYMBOLS[1]:
        raise ValueError("it has too many user-defined symbols")
    merges = _merges(vocab)
    made = {left + right for left, right in merges}
    whole = any(len(symbol) > 1 for symbol in symbols)  # to be found without merges
    ids = {}
    for i, (name, _, kind) in enumerate(vocab):
        if whole and len(name) > 1 and kind in (NORMAL, UNUSED) and name not in made:
            name += " "  # no text has it; nor may it be found as a symbol is
        ids[name] = i
    if len(ids) != len(vocab):
        raise ValueError("one piece has the name of a special token")
    model = models.BPE(
        ids, merges, unk_token=ROLES["unk"], fuse_unk=True, ignore_merges=whole,
        byte_fallback=any(kind == BYTE for *_, kind in vocab),
    )  # fmt: skip
    return model, symbols


def _merges(vocab):
    """[(left, right), ...], the first to be merged first: a pair for each piece.

    SentencePiece merges, of all neighbours that make a piece, those that make the best, the first
    of equals. Pairs that reach over the ends of what becomes a piece are not merged, so that it
    comes about as it does alone, of one pair. The library's order is one of pairs, not of places:
    ValueError for equal scores, for pieces to be cut again, or with a character that is none.
    """
    scores = {name: score for name, score, kind in vocab if kind in (NORMAL, UNUSED)}
    if sum(len(name) ** 2 for name in scores) > _MAX_WORK:
        raise ValueError("its pieces are too long")
    known = {name for name, _, kind in vocab if kind in (NORMAL, UNUSED, USER_DEFINED)}
    merges = []
    for name, score, kind in vocab:
        pair = _last_pair(name, scores) if name in scores else ()
        if not pair:
            continue
        if kind == UNUSED:
            raise ValueError(f"the unused piece {name!r} consists of others: not supported")
        if not known.issuperset(pair):
            raise ValueError(f"a character of {name!r} is no piece: not supported")
        merges.append((score, pair))
    merges.sort(reverse=True)
    for (score, pair), (other, after) in itertools.pairwise(merges):
        if score == other:
            same = f"{''.join(pair)!r} and {''.join(after)!r}"
            raise ValueError(f"the pieces {same} have the same score: not supported")
    return [pair for _, pair in merges]


def _last_pair(name, scores):
    """The two parts that a piece is made of in the end, or () where other pieces come of it."""
    parts, get = list(name), scores.get
    found = [get(a + b, -math.inf) for a, b in itertools.pairwise(parts)]
    while len(parts) > 2:
        best = max(found)
        if best == -math.inf:
            return ()
        i = found.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del found[i]
        for j in range(max(i - 1, 0), min(i + 1, len(found))):  # the pairs on both sides
            found[j] = get(parts[j] + parts[j + 1], -math.inf)
    return tuple(parts) if len(parts) == 2 else ()


def _vocabulary(pieces, trainer):
    """[(name, score, kind), ...] in the order of ids; special tokens' kind is CONTROL."""
    names = [name for name, _, _ in pieces]
    unknown = [i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    if len(unknown) != 1 or len(set(names)) != len(names) or "" in names:
        raise ValueError("it has no unknown piece, or pieces that are empty or repeated")
    places = {"unk": unknown[0]}
    for role in ROLES:
        named = [names.index(n) for n in (_OTHER_NAMES[role], ROLES[role]) if n in names]
        given = trainer.get(_IDS.get(role), -1)
        if role != "unk" and named:
            places[role] = named[0]
        elif 0 <= given < len(names) and pieces[given][2] == CONTROL:
            places.setdefault(role, given)
    if len(set(places.values())) != len(places):
        raise ValueError("one piece is two special tokens")
    role_of = {place: role for role, place in places.items()}
    vocab = []
    for i, (name, score, kind) in enumerate(pieces):
        if i in role_of:
            vocab.append((ROLES[role_of[i]], 0.0, CONTROL))
        elif kind == CONTROL:
            vocab.append((name + " ", 0.0, kind))  # there are no spaces in what the model splits
        else:
            vocab.append((name, score, kind))
    pad = vocab.pop(places["pad"]) if "pad" in places else (ROLES["pad"], 0.0, CONTROL)
    last = [(ROLES[r], 0.0, CONTROL) for r in ROLES if r not in places and r != "pad"]
    return [pad, *vocab, *last]


def _parse(data):
    """(pieces, trainer's part, normaliser's part): [(name, score, kind)] and {field: value}."""
    pieces, parts = [], {2: {}, 3: {}}
    for field, value in _fields(data):
        if field == 1:
            found = dict(_fields(value))
            score = struct.unpack("<f", found.get(2, bytes(4)))[0]
            if not math.isfinite(score):
                raise ValueError(f"piece {len(pieces)} has the score {score}")
            pieces.append((_text(found.get(1, b"")), score, found.get(3, NORMAL)))
        elif field in parts:
            parts[field] = dict(_fields(value))
    if not pieces or not all(isinstance(kind, int) for *_, kind in pieces):
        raise ValueError("it has no pieces")
    return pieces, parts[2], parts[3]


def _fields(data):
    """(number, value) of each field of a protobuf message: int, or bytes of 4, 8 or any length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            value -= (value >> 63) << 64  # negative ones have their sign in bit 63
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
            if len(value) != size:
                raise ValueError("it is cut off")
        yield key >> 3, value


def _varint(data, at):
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise ValueError("it is cut off")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value & (2**64 - 1), at + i + 1
    raise ValueError("a number is too long")


def _text(value):
    return value.decode("utf-8")


def _check_charsmap(data):
    """Raise ValueError for a table in which the library would read beyond its end.

    The size of a double-array trie, its units, and the texts that they point to, each ended by 0.
    """
    (size,) = struct.unpack_from("<I", data)
    units = np.frombuffer(data, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(data[4 + size :], np.uint8)
    _text(data[4 + size :])
    seen, front = np.zeros(len(units), bool), np.array([0])
    while front.size:
        seen[front] = True
        unit = units[front]
        base = front ^ ((unit >> 10) << ((unit & 512) >> 6))
        if (base | 255).max() >= len(units):
            raise ValueError("its normalisation table leads out of itself")
        value = units[base[(unit >> 8 & 1) == 1]] & 0x7FFFFFFF
        if value.size and (value.max() >= len(texts) or (texts[value] & 0xC0 == 0x80).any()):
            raise ValueError("its normalisation table leads out of its texts")
        after = base[:, None] ^ np.arange(1, 256)
        after = after[(units[after] & 0x800000FF) == np.arange(1, 256)]
        front = np.unique(after[~seen[after]])  # words share their ends
