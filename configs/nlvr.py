"""Is the sentence true of the picture? (Cornell NLVR: drawn boxes, human sentences)

The joint representation of image and text, their outer product, is classified. True and false
alone teach nobody to see, so the image tower also learns what the picture holds (`facts`, from the
objects that come with each picture); true or false is told from picture and sentence alone. Colours
are exchanged in picture, sentence and facts. Variants: `image` and `text` (one modality alone, no
exchange), `blind` (without the facts, for data that lacks them), `smoke`.
"""

from configs import common
from multimodal.data import nlvr
from multimodal.data.builders import toy
from multimodal.errors import UserError


def get_config(arg=""):
    words = common.words_of(arg, ("image", "text", "blind", "smoke"))
    if {"image", "text"} <= set(words):
        raise UserError("configs/nlvr.py: 'image' and 'text' are one modality alone: name one")
    c = common.base()
    c.steps, c.batch_size, c.optim.lr.peak = 600, 64, 2e-3
    sizes = dict(width=96, heads=4, mlp_dim=384, depth=1)
    c.modalities.image = common.image_tower(
        size=(48, 192), patch=16, stem="conv", class_token=False, pool="map", final_norm="none",
        background=(211, 211, 211), **sizes
    )  # fmt: skip
    c.modalities.text = common.text_tower(
        vocab_size=512, max_length=32, lower=True, dropout=0.3, pool="mean", **sizes
    )
    c.tokenizer.vocab_size = 512
    common.joint(c, stage="late", operator="tensor", inner=24, width=96, heads=4, mlp_dim=384)
    c.model.classifiers.truth = common.classifier(2)
    c.objectives.classification.smoothing = 0.1
    c.data.source = "records"
    c.data.kwargs = dict(
        root="../shared/data/nlvr",
        rows="examples.jsonl",
        where=dict(split="{split}"),
        id="{id}",
        expand=dict(permutation=6),
        labels=dict(label=dict(field="label", names=("false", "true"))),
        modalities=dict(
            image=dict(tar="boxes-*.tar", member="{id}.png", tiles=(6, 1), tile="{permutation}"),
            text="{sentence}",
        ),
    )
    c.data.augment.swap_colours = dict(colours=nlvr.COLOURS)
    c.data.eval_splits = ("val",)
    c.eval.best = "val/classify/truth/accuracy"
    for m in ("image", "text"):
        if m in words:
            other = {"image": "text", "text": "image"}[m]
            del c.modalities[other]
            del c.data.kwargs.modalities[other]
            del c.data.augment.swap_colours
    if "image" in c.modalities and "blind" not in words:
        look(c)
    if "smoke" in words:
        common.smoke(c)
        if c.data.augment:
            c.data.augment.swap_colours = dict(colours=toy.COLOURS)
    return c


def look(c):
    """The image tower learns the facts of its picture."""
    c.data.kwargs.labels.label_facts = dict(fn="multimodal.data.nlvr:facts", multi=True)
    names = len(nlvr.facts.names)
    c.model.classifiers.facts = common.classifier(names, "label_facts", of="image", multi=True)
    c.objectives.classification.heads = ("truth",)
    # The mean over so many facts is a small loss; true and false alone would drown it.
    c.objectives.facts = dict(fn="classification", heads=("facts",), weight=20.0)
    # Seeing takes a high learning rate; at that, 428 sentences are learned by heart.
    seeing, weights = r"(encoder_image|classifier_facts)/", r"(kernel|embedding)"
    c.optim.rules = (
        (rf"{seeing}.*{weights}", 1.0, 1.0),
        (rf"{seeing}.*", 1.0, 0.0),
        (rf".*/{weights}", 0.15, 1.0),
        (r".*", 0.15, 0.0),
    )
