"""Emoji in several drawing styles: trained on two vendors' drawings, tested on a third's.

Splits: `unseen_glyph` (new glyphs, known styles), `unseen_style` (known glyphs, a new style) and
`unseen_both`. Variants as in emoji.py; `critic` adds adversarial alignment of image and text.
"""

from configs import common

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja", "ar", "hi")


def get_config(arg=""):
    words = [w for w in arg.split(",") if w]
    c = common.base()
    c.steps, c.batch_size = 300, 128
    sizes = dict(width=128, heads=4, mlp_dim=512)
    c.modalities.image = common.image_tower(
        depth=3, augment="random_resized_crop", scale=(0.6, 1.0), **sizes
    )
    c.modalities.text = common.text_tower(vocab_size=8192, max_length=16, depth=2, **sizes)
    c.tokenizer.vocab_size = 8192
    c.model.fusion.update(depth=1, **sizes)
    known, new = ("noto", "twemoji"), "openmoji"
    c.data.source = "records"
    c.data.kwargs = dict(
        root="../shared/data/emoji",
        rows="captions.jsonl",
        id="{id}",
        expand=dict(vendor=(*known, new)),
        splits=dict(
            train=dict(split="train", vendor=known),
            unseen_glyph=dict(split="dev", vendor=known),
            unseen_style=dict(split="train", vendor=new),
            unseen_both=dict(split="dev", vendor=new),
        ),
        modalities=dict(
            image=dict(tar="{vendor}-*.tar", member="{id}.png"),
            text=dict(text={lang: f"{{name.{lang}}}" for lang in LANGUAGES}),
        ),
    )
    c.data.eval_splits = ("unseen_glyph", "unseen_style", "unseen_both")
    c.eval.best = "unseen_style/text_to_image/r1"
    c.eval.names = ("retrieval", "gap")
    critic = "critic" in words
    recipe = ",".join(w for w in words if w != "critic")
    c = common.short_run(common.recipe(c, recipe, default="clip"))
    if critic:
        c.model.heads += ("critic",)
        c.objectives.modality_critic = dict(weight=1.0)
        c.objectives.modality_confusion = dict(weight=0.3)
    return c
