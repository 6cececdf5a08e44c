"""Deterministic training of a WordPiece vocabulary.

The trainer of the `tokenizers` library numbers the continuing characters ('##x') in the order of a
hash map, which differs from run to run and decides ties between merges. Naming all characters in
advance, in a fixed order, and numbering what was merged by name makes the result a function of the
words alone.
"""

import collections
import itertools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from multimodal.errors import UserError

_PREFIX = "##"
_MAX_WORD = 100
_LINES = 64  # texts cut into words at once, with line ends between them: calls cost more than names


def backend(model, lower, strip_accents):
    """A `tokenizers.Tokenizer` with BERT's rules: clean control characters, split Chinese."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def train(texts, vocab_size, lower, specials):
    """Train on an iterable of str; special tokens get the first ids. Accents are kept.

    Raises UserError where there is no text, or the vocabulary is too small for any word.
    """
    words = _count_words(texts, lower)
    if not words:
        raise UserError("no text to train a tokenizer on")
    pieces = _alphabet(words, (vocab_size - len(specials)) * 3 // 4)
    if not pieces:
        raise UserError(f"config.tokenizer.vocab_size={vocab_size} is too small")
    known = {piece.removeprefix(_PREFIX) for piece in pieces}
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*specials, *pieces],
        initial_alphabet=[],
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    scratch = Tokenizer(models.WordPiece(unk_token=specials[1]))
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    scratch.train_from_iterator(_repeat(words, known), trainer)
    # By name, not in the order of their merging, in which equally frequent ones change places from
    # run to run. What ids tokens have is of no consequence for what a caption is split into.
    first = [*specials, *pieces]
    merged = sorted(scratch.get_vocab(with_added_tokens=False).keys() - set(first))
    vocab = {token: i for i, token in enumerate([*first, *merged])}
    return backend(
        models.WordPiece(vocab, unk_token=specials[1], max_input_chars_per_word=_MAX_WORD),
        lower,
        strip_accents=False,
    )


def _count_words(texts, lower):
    rules = backend(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"), lower, strip_accents=False)
    words, texts = collections.Counter(), iter(texts)
    while lines := list(itertools.islice(texts, _LINES)):
        clean = rules.normalizer.normalize_str("\n".join(lines))
        words.update(word for word, _ in rules.pre_tokenizer.pre_tokenize_str(clean))
    return {word: n for word, n in words.items() if len(word) <= _MAX_WORD}


def _alphabet(words, limit):
    """The most frequent characters, as first ('x') and as later ('##x') ones of a word."""
    pieces = collections.Counter()
    for word, n in words.items():
        pieces[word[0]] += n
        for c in word[1:]:
            pieces[_PREFIX + c] += n
    return sorted(sorted(pieces, key=lambda p: (-pieces[p], p))[: max(0, limit)])


def _repeat(words, known):
    """Each word as often as it occurs, in lines of bounded length, in a fixed order."""
    for word in sorted(words):
        if set(word) <= known:
            times = iter(range(words[word]))
            while chunk := list(itertools.islice(times, 1000)):
                yield " ".join([word] * len(chunk))
