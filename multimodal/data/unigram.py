"""Deterministic training of a Unigram vocabulary (Kudo 2018), SentencePiece's default."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from multimodal.errors import UserError

_DIGITS = 6  # of scores: what comes after them hangs on the order in which threads add up


def backend(model, lower):
    """A `tokenizers.Tokenizer` with SentencePiece's rules: NFKC, one space, '▁' for a space."""
    rules = [normalizers.NFKC(), *([normalizers.Lowercase()] if lower else [])]
    rules += [normalizers.Replace(Regex(r"[\s\x00]+"), " "), normalizers.Strip()]
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(rules)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def shield(tokenizer, ids):
    """A tokenizer that gives the same, but never one of these ids for their names in a text.

    To a Unigram model every entry of its vocabulary is a piece, and to one of byte pairs that is
    asked for whole words before merges; others are left as they are.
    """
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    if model["type"] == "Unigram":
        for i in ids:
            model["vocab"][i][0] += " "  # there are no spaces in what the model splits
    elif model["type"] == "BPE" and model["ignore_merges"]:
        names = {tokenizer.id_to_token(i) for i in ids}
        model["vocab"] = {n + " " * (n in names): i for n, i in model["vocab"].items()}
        model["merges"] = [m for m in model["merges"] if not names & {*m, "".join(m)}]
        if model["unk_token"] in names:
            model["unk_token"] += " "
    else:
        return tokenizer
    return Tokenizer.from_str(json.dumps(spec))


def train(texts, vocab_size, lower, specials):
    """Train on an iterable of str; special tokens get the first ids, the others by their score.

    Raises UserError where there is no text, or it has more characters than the vocabulary places.
    """
    scratch = backend(models.Unigram(), lower)
    texts = sorted(t for t in map(scratch.normalizer.normalize_str, texts) if t)
    if not texts:
        raise UserError("no text to train a tokenizer on")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        unk_token=specials[1],
        show_progress=False,
    )
    try:
        scratch.train_from_iterator(texts, trainer)
    except Exception as e:  # the library raises plain ones
        raise UserError(f"config.tokenizer.vocab_size={vocab_size}: {e!s:.150}") from None
    learnt = json.loads(scratch.to_str())["model"]["vocab"]
    pieces = [(p, round(s, _DIGITS)) for p, s in learnt if p not in specials]
    pieces.sort(key=lambda piece: (-piece[1], piece[0]))
    vocab = [(s, 0.0) for s in specials] + pieces[: vocab_size - len(specials)]
    return backend(models.Unigram(vocab, unk_id=1), lower)
