"""Is the sentence true of the picture? (Cornell NLVR: drawn boxes, human sentences)

The joint representation of image and text, by default their outer product, is classified; training
exchanges colours in picture and sentence. Variants: `image` and `text` (one modality alone),
`smoke`.
"""

from configs import common


def get_config(arg=""):
    words = common.words_of(arg, ("image", "text", "smoke"))
    c = common.base()
    c.steps, c.batch_size, c.optim.lr.peak = 2500, 64, 1e-3
    sizes = dict(width=96, heads=4, mlp_dim=384, pool="mean")
    c.modalities.image = common.image_tower(
        size=(50, 200), patch=10, depth=1, class_token=False, background=(211, 211, 211), **sizes
    )
    c.modalities.text = common.text_tower(
        vocab_size=512, max_length=32, depth=1, lower=True, dropout=0.3, **sizes
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
    c.data.augment.swap_colours = dict(
        colours=dict(yellow=(255, 255, 0), black=(0, 0, 0), blue=(0, 153, 255))
    )
    c.data.eval_splits = ("val",)
    c.eval.best = "val/classify/truth/accuracy"
    for m in ("image", "text"):
        if m in words:
            other = {"image": "text", "text": "image"}[m]
            del c.modalities[other]
            del c.data.kwargs.modalities[other]
            del c.data.augment.swap_colours
    return common.smoke(c) if "smoke" in words else c
