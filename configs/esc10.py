"""Ten kinds of sound (ESC-10): supervised, and zero-shot by the names of the classes.

The argument names the fold that is held out (1 to 4; default 1) and `zeroshot` or `smoke`:
configs/esc10.py:2,zeroshot. Without `zeroshot` a classifier is trained on the other folds; with it,
sound and caption are aligned and the class is the nearest prompt.
"""

from configs import common

FOLDS = (1, 2, 3, 4)
NAMES = (
    "Dog bark",
    "Rain",
    "Sea waves",
    "Baby cry",
    "Clock tick",
    "Person sneeze",
    "Helicopter",
    "Chainsaw",
    "Rooster",
    "Fire crackling",
)


def get_config(arg=""):
    words = common.words_of(arg, (*map(str, FOLDS), "zeroshot", "smoke"))
    held_out = next((int(w) for w in words if w.isdigit()), 1)
    c = common.base()
    c.steps, c.batch_size = 300, 32
    sizes = dict(width=96, heads=4, mlp_dim=384)
    c.modalities.audio = common.audio_tower(
        encoder="whisper",
        seconds=5.0,
        mels=64,
        window=640,
        hop=320,
        fft=1024,
        depth=3,
        dropout=0.1,
        augment="speed",
        **sizes,
    )
    c.data.source = "records"
    c.data.kwargs = dict(
        root="../shared/data/esc10",
        rows="clips.jsonl",
        id="{label_id}",
        splits=dict(
            train=dict(fold=tuple(f for f in FOLDS if f != held_out)), val=dict(fold=held_out)
        ),
        labels=dict(label=dict(field="label_id", names=NAMES)),
        modalities=dict(audio=dict(tar="*.tar", member="{id}.ogg")),
    )
    c.data.eval_splits = ("val",)
    c.eval.batch_size = 40
    if "zeroshot" in words:
        c.modalities.text = common.text_tower(vocab_size=256, max_length=12, depth=1, **sizes)
        c.tokenizer.vocab_size = 256
        c.data.kwargs.modalities.text = "{caption}"
        c.objectives.contrastive = dict(weight=1.0, a="audio", b="text")
        c.eval.names, c.eval.classify = ("zeroshot", "retrieval", "gap"), "audio"
        c.eval.templates = ("a {}", "the sound of a {}", "{}")
    else:
        c.model.classifiers.sound = common.classifier(10, of="audio")
        c.objectives.classification = dict(weight=1.0, smoothing=0.1)
        c.eval.names = ("classification",)
    return common.smoke(c) if "smoke" in words else c
