"""Tokenizer: captions to ids, backed by the `tokenizers` library.

Special tokens are put in by this class alone, so those names inside a caption are plain text.
"""

import base64
import json
import math
import os
import re

import numpy as np
import tokenizers
from tokenizers import models

from multimodal import paths
from multimodal.data import clip_bpe, sentencepiece_model, unigram, wordpiece
from multimodal.errors import BadRecord, UserError, first_line

SPECIALS = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", clip_bpe.START),
    "sep": ("[SEP]", "</s>", clip_bpe.END),
    "mask": ("[MASK]", "<mask>"),
}
TRAINERS = {"wordpiece": wordpiece.train, "unigram": unigram.train}
KINDS = (*TRAINERS, "clip")
_SURROGATES = re.compile("[\ud800-\udfff]")
_MAX_GROWTH = 1000  # times that all replacements of a normalizer may make a text longer
_PROBE = "A dog, 犬 \0 x1"
_MAX_CHARACTERS = 20_000  # What lies beyond cannot matter for any max_length in use.


class Tokenizer:
    """`[CLS] pieces ([SEP])` of captions; attributes pad, unk, cls, sep, mask, vocab_size, add_sep.

    `add_sep` False is ALBEF's own habit; True is BERT's. CLIP's has neither unknown nor mask token
    (None), and fills up with 0, which is a token of text as well.
    """

    def __init__(self, backend, add_sep=True):
        self._backend = backend
        self.add_sep = add_sep
        self.vocab_size = backend.get_vocab_size(with_added_tokens=False)
        vocab = backend.get_vocab(with_added_tokens=False)
        self.is_clip = clip_bpe.START in vocab and SPECIALS["pad"][0] not in vocab
        for role, names in SPECIALS.items():
            found = [vocab[name] for name in names if name in vocab]
            if self.is_clip and not found and role not in ("cls", "sep"):
                found = [0 if role == "pad" else None]
            if not found:
                raise UserError(f"the tokenizer has no {names[0]} token; give a BERT-style one")
            setattr(self, role, found[0])
        if self.pad != 0:
            raise UserError(f"the padding token of the tokenizer is {self.pad}, but must be 0")
        roles = (getattr(self, role) for role in SPECIALS)
        self._encoder = backend if self.is_clip else unigram.shield(backend, roles)
        if max(vocab.values()) + 1 != self.vocab_size:
            raise UserError(
                f"the vocabulary has {self.vocab_size} tokens but ids up to "
                f"{max(vocab.values())}: its ids are not dense"
            )

    def encode_batch(self, texts, max_length):
        """Ids of captions: int32 [N, max_length], cut to fit, 0 is padding."""
        out = np.full((len(texts), max_length), self.pad, np.int32)
        room = max_length - 1 - self.add_sep
        if room < 0:
            raise UserError(f"max_length={max_length} leaves no room for the special tokens")
        texts = [_clean(t) for t in texts]
        encoded = self._encode([clip_bpe.clean(t) for t in texts] if self.is_clip else texts)
        for row, item in zip(out, encoded, strict=True):
            ids = [self.cls, *item.ids[:room], *([self.sep] if self.add_sep else [])]
            row[: len(ids)] = ids
        return out

    def decode(self, ids):
        """Text of ids; special tokens are left out, apart from unknown ones."""
        ids = [int(i) for i in ids]
        if self.is_clip:  # whose padding is a token of text
            ids = ids[: ids.index(self.sep)] if self.sep in ids else ids
            return clip_bpe.text_of(self.tokens(i for i in ids if i != self.cls))
        skip = {self.pad, self.cls, self.sep, self.mask}
        return self._backend.decode([i for i in ids if i not in skip], skip_special_tokens=False)

    def tokens(self, ids):
        """The token of each id, as a list of str."""
        return [self._backend.id_to_token(int(i)) for i in ids]

    def check_vocab(self, model_vocab_size, where="the model"):
        """Raise UserError unless every id has a row in an embedding of that size."""
        if self.vocab_size > model_vocab_size:
            raise UserError(
                f"the tokenizer has {self.vocab_size} tokens, but {where} has room for "
                f"{model_vocab_size}; they do not belong together"
            )

    def save(self, path):
        """Write a standard tokenizer.json, atomically."""
        roles = ("cls", "sep") if self.is_clip else tuple(SPECIALS)
        names = {role: self._backend.id_to_token(getattr(self, role)) for role in roles}
        spec = json.loads(self._backend.to_str())
        spec["added_tokens"] = [_added_token(getattr(self, role), names[role]) for role in roles]
        spec["post_processor"] = _template(names, self)
        temporary = f"{path}.{os.getpid()}.tmp"
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(spec, f, ensure_ascii=False, indent=1)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path, cfg=None):
        """Read a tokenizer.json, a BERT vocab.txt (lower-case, accents stripped, as in BERT),
        CLIP's bpe_simple_vocab_16e6.txt.gz or SentencePiece's .model; by path or URL.

        `add_sep` of `cfg`, if given, overrides that of the file. Raises UserError for other files.
        """
        add_sep = None if cfg is None else cfg.get("add_sep")
        if str(path).endswith(".gz"):
            return cls(clip_bpe.backend(path))
        if str(path).endswith(".model"):
            return cls(sentencepiece_model.backend(path), add_sep is not False)
        try:
            text = paths.read(path).decode("utf-8-sig")
        except (OSError, ValueError) as e:
            raise UserError(f"cannot read the tokenizer {str(path)!r} ({e})") from None
        if str(path).endswith(".txt"):
            return cls(_from_vocab(path, text), add_sep is not False)
        try:
            spec = json.loads(text)
            found = _ends_with_sep(spec.get("post_processor"))
            spec.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
            _check_normalizer(spec.get("normalizer"))
            backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
            backend.encode(_PROBE)
        except BaseException as e:
            _reraise(e)
            raise UserError(f"{path}: not a tokenizer.json ({first_line(e)})") from None
        return cls(backend, found if add_sep is None else add_sep)

    def __getstate__(self):
        return {"json": self._backend.to_str(), "add_sep": self.add_sep}

    def __setstate__(self, state):
        self.__init__(tokenizers.Tokenizer.from_str(state["json"]), state["add_sep"])

    def _encode(self, texts):
        try:
            # For a few captions the library's thread pool costs more than it saves.
            if len(texts) < 64:
                return [self._encoder.encode(t, add_special_tokens=False) for t in texts]
            return self._encoder.encode_batch(texts, add_special_tokens=False)
        except BaseException as e:
            _reraise(e)
            raise BadRecord(f"text cannot be cut into tokens ({first_line(e)})") from None


def train_tokenizer(captions, cfg):
    """Train a tokenizer on an iterable of str; the same captions give the same bytes.

    `cfg` keys: `kind` ('wordpiece', 'unigram'; 'clip' is not trained but found in an installed
    package), `vocab_size` (upper bound), `add_sep`, `lower`.
    """
    kind = cfg.get("kind", "wordpiece")
    if kind == "clip":
        return Tokenizer(clip_bpe.backend())
    if kind not in TRAINERS:
        raise UserError(f"config.tokenizer.kind={kind!r}; there are {', '.join(KINDS)}")
    backend = TRAINERS[kind](
        (_clean(c) for c in captions),
        int(cfg["vocab_size"]),
        lower=cfg.get("lower", True),
        specials=[names[0] for names in SPECIALS.values()],
    )
    return Tokenizer(backend, bool(cfg.get("add_sep", True)))


def _clean(text):
    return _SURROGATES.sub("\ufffd", text[:_MAX_CHARACTERS])


def _reraise(error):
    """Raise again what is not the library's: its panics are no Exceptions."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error


def _check_normalizer(spec):
    """Raise ValueError for a normalizer that takes all memory, at which the library ends the
    process: replacements that make texts grow without bounds, and a table that claims more bytes
    than it has.
    """
    rules = [spec]
    growth = []
    while rules:
        rule = rules.pop()
        if not isinstance(rule, dict):
            continue
        rules += rule.get("normalizers") or []
        growth.append(1 + len(rule.get("content") or "") + len(rule.get("prepend") or ""))
        if rule.get("type") == "Precompiled":
            table = base64.b64decode(rule["precompiled_charsmap"], validate=True)
            if len(table) < 4 or int.from_bytes(table[:4], "little") > len(table) - 4:
                raise ValueError("the table of its normalizer is cut off")
    if math.prod(growth) > _MAX_GROWTH:
        raise ValueError("its normalizer makes texts more than a thousand times longer")


def _from_vocab(path, text):
    names = text.removesuffix("\n").split("\n")
    vocab = {name.rstrip("\r"): i for i, name in enumerate(names)}
    if len(vocab) != len(names) or "[UNK]" not in vocab:
        raise UserError(f"{path}: not a BERT vocabulary (one token a line, with [UNK], no repeats)")
    model = models.WordPiece(vocab, unk_token="[UNK]")
    return wordpiece.backend(model, lower=True, strip_accents=True)


def _added_token(number, name):
    return {
        "id": number,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _template(names, tokenizer):
    """The post-processor that makes other readers of the file put in the same special tokens."""

    def special(role):
        return {"SpecialToken": {"id": names[role], "type_id": 0}}

    ends = [special("sep")] if tokenizer.add_sep else []
    single = [special("cls"), {"Sequence": {"id": "A", "type_id": 0}}, *ends]
    used = ("cls", "sep") if tokenizer.add_sep else ("cls",)
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, *ends],
        "special_tokens": {
            names[r]: {"id": names[r], "ids": [getattr(tokenizer, r)], "tokens": [names[r]]}
            for r in used
        },
    }


def _ends_with_sep(processor):
    """Whether a file's post-processor closes a caption with a separator; yes where it has none."""
    if not processor or processor.get("type") != "TemplateProcessing":
        return True
    return "SpecialToken" in processor["single"][-1]
