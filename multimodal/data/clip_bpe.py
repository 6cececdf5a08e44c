"""CLIP's byte-pair encoding, from its own list of merges (Radford et al. 2021)."""

import gzip
import html
import importlib.util
import pathlib
import zlib

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from multimodal import paths
from multimodal.errors import UserError

FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip", "clip", "open_clip_jax")  # whose wheels bring it along
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49_152 - 256 - 2
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"""
_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))
_LIMIT = 16 << 20  # bytes of the unpacked list, which has three million


def find():
    """The path of the list in an installed package. Raises UserError where there is none."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # imports nothing
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := pathlib.Path(folder, FILE)).is_file():
                return path
    raise UserError(
        f"config.tokenizer.kind 'clip' needs {FILE}: give its path as config.tokenizer.path, or "
        "install a package that holds it (pip install --no-deps open_clip_torch)"
    )


def backend(path="") -> Tokenizer:
    """A `tokenizers.Tokenizer` of 49,408 tokens from that list; '' finds it.

    Raises UserError for another file.
    """
    path = path or find()
    try:
        with paths.open_binary(path) as raw, gzip.open(raw) as f:
            lines = f.read(_LIMIT).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise UserError(f"{path}: not CLIP's {FILE} ({e!s:.100})") from None
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    if len(merges) != MERGES or any(len(m) != 2 for m in merges):
        raise UserError(f"{path}: not CLIP's {FILE}: it has no {MERGES} merges of two pieces")
    letters = byte_letters()
    words = [*letters, *(c + "</w>" for c in letters), *map("".join, merges), START, END]
    vocab = {word: i for i, word in enumerate(words)}
    try:
        model = models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=END)
    except Exception as e:  # the library raises plain ones
        raise UserError(f"{path}: not CLIP's {FILE} ({e!s:.100})") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def byte_letters():
    """The letter that stands for each byte, printable ones first (GPT-2's bytes_to_unicode)."""
    return [chr(b) for b in _PLAIN] + [chr(256 + i) for i in range(256 - len(_PLAIN))]


def _bytes():
    return [*_PLAIN, *(b for b in range(256) if b not in _PLAIN)]


def clean(text):
    """Text as CLIP sees it: HTML's entities resolved, twice. (The original also mends broken
    encodings, by ftfy.)
    """
    return html.unescape(html.unescape(text))


def text_of(tokens):
    """The text that tokens stand for."""
    byte_of = {letter: byte for byte, letter in zip(_bytes(), byte_letters(), strict=True)}
    letters = "".join(tokens).replace("</w>", " ")
    data = bytes(byte_of.get(c, ord(" ")) for c in letters)
    return data.decode("utf-8", "replace").strip()
