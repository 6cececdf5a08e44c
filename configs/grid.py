"""A talking face (GRID corpus): video, sound and words in one space, and the words as six slots.

By default the three modalities are aligned pairwise, and each slot is classified from the sound and
from the lips. Variants: `fusion` (sound and lips into one h_m, which the slots are read from; no
text), `binding` (video and text are aligned with the sound only, as ImageBind binds to images),
`smoke`.
"""

from configs import common

SLOTS = dict(
    command=("bin", "lay", "place", "set"),
    colour=("blue", "green", "red", "white"),
    preposition=("at", "by", "in", "with"),
    letter=tuple("abcdefghijklmnopqrstuvxyz"),
    digit=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    adverb=("again", "now", "please", "soon"),
)


def get_config(arg=""):
    words = common.words_of(arg, ("fusion", "binding", "smoke"))
    c = common.base()
    c.steps, c.batch_size, c.optim.lr.peak = 1500, 32, 2e-3
    sizes = dict(width=96, heads=4, mlp_dim=384)
    c.modalities.audio = common.audio_tower(
        sample_rate=8000,
        seconds=3.0,
        mels=40,
        window=200,
        hop=80,
        fft=256,
        patch=(40, 6),
        augment="shift",
        depth=4,
        **sizes,
    )
    # Lips move by a 30th of the grey levels, on a face that stays and tells nothing of the words:
    # so take what moves, of a coarse picture, with weights of its own for each time.
    c.modalities.video = common.video_tower(
        encoder="frames",
        frames=25,
        size=16,
        channels=1,
        patch=16,
        motion=True,
        std=(0.03,) * 3,
        depth=1,
        temporal="concat",
        dropout=0.3,
        augment="shift",
        **sizes,
    )
    c.data.source = "records"
    c.data.kwargs = dict(
        root="../shared/data/grid_s1",
        rows="clips.jsonl",
        where=dict(split="{split}"),
        id="{text}",
        labels={
            f"label_{slot}": dict(field=f"slots.{i}", names=names)
            for i, (slot, names) in enumerate(SLOTS.items())
        },
        modalities=dict(
            video=dict(tar="sheets-*.tar", member="{id}.jpg", tiles=(5, 5), channels=1),
            audio=dict(tar="audio-*.tar", member="{id}.ogg"),
        ),
    )
    c.data.eval_splits = ("val",)
    c.eval.names = ("classification", "retrieval", "gap")
    c.eval.batch_size, c.model.embed_dim = 50, 64
    fuse(c) if "fusion" in words else align(c, sizes, "binding" in words)
    return common.smoke(c) if "smoke" in words else c


def align(c, sizes, binding):
    """Three towers, their pairs contrasted, slots by sound and by lips apart."""
    c.modalities.text = common.text_tower(vocab_size=256, max_length=10, depth=2, **sizes)
    c.tokenizer.vocab_size = 256
    c.data.kwargs.modalities.text = "{text}"
    pairs = [("audio", "text"), ("video", "audio")] + ([] if binding else [("video", "text")])
    for a, b in pairs:
        c.objectives[f"{a}_{b}"] = dict(fn="contrastive", weight=0.3, a=a, b=b)
    for m in ("audio", "video"):
        for slot, names in SLOTS.items():
            c.model.classifiers[f"{m}_{slot}"] = common.classifier(len(names), f"label_{slot}", m)
    c.objectives.classification = dict(weight=1.0)
    c.eval.best = "val/classify/mean_accuracy"


def fuse(c):
    """One representation of sound and lips; every slot is read from it."""
    common.joint(c, stage="hybrid", operator="attention", width=96, depth=1, heads=4, mlp_dim=384)
    for slot, names in SLOTS.items():
        c.model.classifiers[slot] = common.classifier(len(names), f"label_{slot}")
    c.eval.names = ("classification", "robustness")
    c.eval.best = "val/classify/mean_accuracy"
