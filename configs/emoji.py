"""ALBEF on emoji: drawings and their names in 14 languages. The default job; minutes on a laptop.

Variants: `:clip` and `:siglip` train the two towers alone, `:albef_original` the original's step
with its flaws, `:smoke` is a tiny version that ends in seconds; `:clip,smoke` is both.
"""

from configs import common


def get_config(arg=""):
    c = common.base()
    c.steps, c.batch_size = 500, 256
    sizes = dict(width=128, heads=4, mlp_dim=512)
    c.modalities.image = common.image_tower(depth=3, augment="pad_crop", **sizes)
    # 16 tokens of this vocabulary cut 1 % of the names; their last words are often what tells them
    # apart.
    c.modalities.text = common.text_tower(vocab_size=8192, max_length=16, **sizes)
    c.tokenizer.vocab_size = 8192
    c.model.fusion.update(depth=1, **sizes)
    return common.short_run(common.recipe(common.use_emoji(c), arg))
