"""ALBEF on emoji: drawings and their names in 14 languages. The default job; minutes on a laptop.

`:smoke` is a tiny version that ends in seconds, `:clip` and `:siglip` train the two towers alone.
"""

from configs import common


def get_config(arg=""):
    c = common.base()
    c.steps, c.batch_size = 1000, 256
    c.modalities.image = common.image_tower(augment="pad_crop")
    c.modalities.text = common.text_tower()
    c.model.heads = ("match", "mlm")
    c.model.fusion.kind = "cross_attention"
    c.objectives.contrastive = dict(
        fn="contrastive", weight=1.0, momentum=True,
        alpha=dict(schedule="ramp", end=0.4, steps=c.steps // 2),
    )
    c.objectives.itm = dict(fn="itm", weight=1.0)
    c.objectives.mlm = dict(
        fn="mlm", weight=1.0, momentum=True, alpha=dict(schedule="ramp", end=0.4, steps=c.steps // 2)
    )
    c.ema.decay = 0.995
    c.queue.size = 2048
    c.data.kwargs = dict(name="emoji_names")
    c.data.eval_splits = ("unseen_combination", "unseen_glyph")
    c.eval.best = "unseen_combination/text_to_image/r1"
    common.two_tower(c, arg)
    if arg == "smoke":
        common.smoke(c)
    return c
