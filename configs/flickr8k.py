"""ALBEF on photographs with five captions each, from tar shards and a JSONL file (Flickr8k at 128
px).

The folder holds `*.tar` with `<id>.jpg` and `captions.jsonl` with `id, split, captions` a line;
point --config.data.kwargs.folder at yours. Variants as in emoji.py.
"""

from configs import common


def get_config(arg=""):
    c = common.base()
    c.steps, c.batch_size = 850, 256
    sizes = dict(width=128, heads=4, mlp_dim=512)
    c.modalities.image = common.image_tower(
        size=96, depth=4, augment="random_resized_crop", scale=(0.4, 1.0), flip=True, **sizes
    )
    c.modalities.text = common.text_tower(max_length=20, depth=2, lower=True, **sizes)
    c.model.fusion.update(depth=1, **sizes)
    c.data.source = "jsonl_tar"
    c.data.kwargs = dict(folder="../shared/data/flickr8k_128")
    c.data.eval_splits = ("dev",)
    c.eval.best = "dev/mean_recall"
    return common.short_run(common.recipe(c, arg))
