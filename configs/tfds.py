"""CLIP on any prepared TFDS set with images and texts or labels: configs/tfds.py:NAME[,RECIPE].

The set must be prepared with file_format='array_record'; a class label becomes "a photo of a {}".
Without a name, the embedded emoji set. Evaluates on the split `test`; set --config.data.eval_splits
for others.
"""

from configs import common


def get_config(arg=""):
    name, *words = arg.split(",")
    if name in ("", "smoke", "albef_original", *common.RECIPES):
        name, words = "emoji_names", arg.split(",")
    c = common.base()
    sizes = dict(width=192, heads=3, mlp_dim=768)
    c.modalities.image = common.image_tower(
        size=64, depth=4, augment="random_resized_crop", **sizes
    )
    c.modalities.text = common.text_tower(max_length=24, depth=2, **sizes)
    c.model.fusion.update(depth=1, **sizes)
    if name == "emoji_names":
        common.use_emoji(c)
    else:
        c.data.kwargs = dict(name=name, data_dir="", image_field="", text_field="", label_field="")
        c.data.eval_splits = ("test",)
    return common.recipe(c, ",".join(words), default="clip")
