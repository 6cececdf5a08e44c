"""SentencePiece's `.model` files (Unigram) as a tokenizer of the `tokenizers` library.

The file is a protobuf, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto;
of it pieces, scores and normalisation are read here, nothing is executed, and sizes and tables are
checked, because the library trusts them.
"""

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
_MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
_LIMIT = 64 * 2**20  # bytes; the largest known have 5 million
_SPACE = "▁"


def backend(path) -> Tokenizer:
    """A `tokenizers.Tokenizer` of a .model file, by path or URL.

    Padding must be 0 here. Where it is in the file, ids are the file's; otherwise it is put first
    and the ids of the others move up by one. Special tokens that the file lacks come last.

    Pieces are those of SentencePiece, except where several accents stand on one character in
    another order than Unicode's own, and for a literal '▁' or '<0x41>' in a text. Raises UserError
    for a file that is damaged, too large or of another kind than Unigram.
    """
    try:
        if paths.size(path) > _LIMIT:
            raise UserError(f"{path}: larger than {_LIMIT} bytes: not a SentencePiece model")
        data = paths.read(path)
    except OSError as e:
        raise UserError(f"cannot read the tokenizer {str(path)!r} ({e})") from None
    try:
        pieces, trainer, rules = _parse(data)
        if trainer.get(3, 1) != 1:
            kind = _MODELS.get(trainer[3], trainer[3])
            raise ValueError(f"it is a {kind} model, and only Unigram is read")
        vocab, unk = _vocabulary(pieces, trainer)
        return _build(vocab, unk, trainer, rules, any(kind == BYTE for *_, kind in pieces))
    except UserError:
        raise
    except Exception as e:  # the library raises plain ones
        raise UserError(f"{path}: not a SentencePiece model ({e!s:.150})") from None


def _build(vocab, unk, trainer, rules, bytes_too):
    if not rules.get(5, 1) or trainer.get(24, 0):
        raise ValueError("escape_whitespaces=false, treat_whitespace_as_suffix: not supported")
    tokenizer = Tokenizer(models.Unigram(vocab, unk, bytes_too))
    steps = []
    if charsmap := rules.get(2, b""):
        _check_charsmap(charsmap)
        # The library looks up single characters; what several make together is NFKC's.
        steps += [normalizers.NFKC()] if "nfkc" in _text(rules.get(1, b"")) else []
        steps.append(normalizers.Precompiled(charsmap))
    if rules.get(4, 1):  # remove_extra_whitespaces
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    # Words are looked up one by one, unless a piece has the end of one and the start of another.
    apart = not any(_SPACE in name[1:] for name, _ in vocab)
    scheme = "always" if rules.get(3, 1) else "never"  # add_dummy_prefix
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, scheme, apart)
    ends = [decoders.Metaspace(_SPACE, scheme, apart)]
    if bytes_too:
        ends = [decoders.ByteFallback(), *ends]
    tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer


def _vocabulary(pieces, trainer):
    """([(name, score), ...], id of unknown) in the order of ids."""
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
    best = max((s for _, s, kind in pieces if kind == NORMAL), default=0.0)
    vocab = []
    for i, (name, score, kind) in enumerate(pieces):
        if i in role_of:
            vocab.append((ROLES[role_of[i]], 0.0))
        elif kind in (CONTROL, UNUSED):
            vocab.append((name + " ", 0.0))  # there are no spaces in what the model splits
        elif kind == USER_DEFINED:  # always preferred: SentencePiece's own formula
            vocab.append((name, len(name) * best - 0.1))
        else:
            vocab.append((name, score))
    pad = vocab.pop(places["pad"]) if "pad" in places else (ROLES["pad"], 0.0)
    vocab = [pad, *vocab, *((ROLES[r], 0.0) for r in ROLES if r not in places and r != "pad")]
    return vocab, [name for name, _ in vocab].index(ROLES["unk"])


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
