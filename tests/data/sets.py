"""Arguments of the `records` source for real sets, as configs give them; `root` comes on top."""

DIGITS = dict(
    rows="pairs_{split}.jsonl",
    modalities=dict(
        image=dict(npz="mnist_*.npz", index="index", row="{mnist_index}"),
        audio=dict(tar="fsdd*.tar", member="{audio_id}.wav"),
    ),
    labels=dict(label="digit"),
)
LETTERS = tuple("abcdefghijklmnopqrstuvxyz")  # w has several syllables: GRID leaves it out
DIGIT_WORDS = "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"
GRID = dict(
    rows="clips.jsonl",
    where=dict(split="{split}"),
    modalities=dict(
        video=dict(tar="sheets-*.tar", member="{id}.jpg", tiles=(5, 5), channels=1),
        audio=dict(tar="audio-*.tar", member="{id}.ogg"),
        text="{text}",
    ),
    labels=dict(
        label_command=dict(field="slots.0", names=("bin", "lay", "place", "set")),
        label_colour=dict(field="slots.1", names=("blue", "green", "red", "white")),
        label_preposition=dict(field="slots.2", names=("at", "by", "in", "with")),
        label_letter=dict(field="slots.3", names=LETTERS),
        label_digit=dict(field="slots.4", names=DIGIT_WORDS),
        label_adverb=dict(field="slots.5", names=("again", "now", "please", "soon")),
    ),
)
ESC10 = dict(
    rows="clips.jsonl",
    id="{label_id}",
    splits=dict(
        train1=dict(fold=(2, 3, 4)),
        val1=dict(fold=1),
        train=dict(fold=(1, 2, 3, 4)),
    ),
    modalities=dict(audio=dict(tar="folds*.tar", member="{id}.ogg"), text="{caption}"),
    labels=dict(label=dict(field="label_id", names_field="label")),
)
NLVR = dict(
    rows="examples.jsonl",
    where=dict(split="{split}"),
    expand=dict(permutation=6),
    id="{id}",
    modalities=dict(
        image=dict(tar="boxes-*.tar", member="{id}.png", tiles=(6, 1), tile="{permutation}"),
        text="{sentence}",
    ),
    labels=dict(label=dict(field="label", names=("false", "true"))),
)
EMOJI = dict(
    rows="captions.jsonl",
    id="{id}",
    expand=dict(vendor=("noto", "twemoji", "openmoji")),
    splits=dict(
        train=dict(split="train", vendor=("noto", "twemoji")),
        unseen_glyph=dict(split="dev", vendor=("noto", "twemoji")),
        unseen_style=dict(split="train", vendor="openmoji"),
        unseen_both=dict(split="dev", vendor="openmoji"),
    ),
    modalities=dict(image=dict(tar="{vendor}-*.tar", member="{id}.png"), text="{name.en}"),
)
