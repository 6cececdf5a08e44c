"""CLIP at the sizes of Radford et al. 2021: configs/clip.py:b32 (default), b16, l14; add ,siglip
for the sigmoid loss.

Give the data (tar shards and captions.jsonl) as --config.data.kwargs.folder.
"""

from configs import common

# image: width, depth, heads, patch; text: width, heads; shared space
SIZES = {
    "b32": (768, 12, 12, 32, 512, 8, 512),
    "b16": (768, 12, 12, 16, 512, 8, 512),
    "l14": (1024, 24, 16, 14, 768, 12, 768),
}


def get_config(arg=""):
    words = [w for w in arg.split(",") if w]
    size = next((w for w in words if w in SIZES), "b32")
    width, depth, heads, patch, text_width, text_heads, embed_dim = SIZES[size]
    c = common.base()
    c.batch_size, c.steps = 4096, 100_000
    c.modalities.image = common.image_tower(
        size=224,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=4 * width,
        eps=1e-5,
        patch_bias=False,
        pre_norm=True,
        final_norm="pooled",
        proj_bias=False,
        scan=True,
        augment="random_resized_crop",
        scale=(0.9, 1.0),
        resize="crop",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    c.modalities.text = common.text_tower(
        vocab_size=49408,
        max_length=77,
        width=text_width,
        depth=12,
        heads=text_heads,
        mlp_dim=4 * text_width,
        eps=1e-5,
        causal=True,
        mask_padding=False,
        pool="eot",
        eot_id=3,
        proj_bias=False,
        scan=True,
        lower=True,
    )
    c.model.fusion.update(width=text_width, heads=text_heads, mlp_dim=4 * text_width, scan=True)
    c.model.embed_dim, c.model.dtype = embed_dim, "bfloat16"
    c.optim.lr.update(peak=5e-4, warmup=2000)
    c.optim.update(weight_decay=0.2, clip=0.0)
    c.tokenizer.vocab_size = 49408
    c.data.source = "jsonl_tar"
    c.data.kwargs = dict(folder="data/pretrain")
    c.data.eval_splits = ("val",)
    c.eval.best = "val/mean_recall"
    return common.recipe(c, ",".join(w for w in words if w not in SIZES), default="clip")
