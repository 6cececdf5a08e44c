"""ALBEF on emoji: drawings and their names in 14 languages. The default job; minutes on a laptop.

Variants: `:clip` and `:siglip` train the two towers alone, `:albef_original` the original's step with its flaws, `:smoke`
is a tiny version that ends in seconds; `:clip,smoke` is both.
"""

from configs import common


def get_config(arg=""):
    c = common.base()
    c.steps, c.batch_size = 1000, 256
    c.modalities.image = common.image_tower(augment="pad_crop")
    c.modalities.text = common.text_tower()
    c.data.kwargs = dict(name="emoji_names")
    c.data.eval_splits = ("unseen_combination", "unseen_glyph")
    c.eval.best = "unseen_combination/text_to_image/r1"
    return common.recipe(c, arg)
