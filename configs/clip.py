"""CLIP at published sizes: configs/clip.py:b32 (default), b16, l14 (Radford et al. 2021), h14, g14
(OpenCLIP, Cherti et al. 2023); add ,siglip for the sigmoid loss.

`,tiled` is for TPUs: 256 or 64 tokens an image (the mean of the patches instead of a class token;
256 pixels where patches have 16 or 32), 64 a text, rematerialisation, and attention that rounds its
logits. `,tiled,unrolled` is faster where there is memory for it: no loop over layers, and the image
tower keeps what is dear to compute again, the text tower all. `,unrolled` is for GPUs: no loop.
With CLIP's own tokenizer instead of a trained one: --config.tokenizer.kind=clip
--config.modalities.text.eot_id=49407. The data (tar shards and captions.jsonl) is
--config.data.kwargs.folder.
"""

from configs import common

# image: width, depth, heads, patch, MLP; text: width, heads, depth; shared space
SIZES = {
    "b32": (768, 12, 12, 32, 3072, 512, 8, 12, 512),
    "b16": (768, 12, 12, 16, 3072, 512, 8, 12, 512),
    "l14": (1024, 24, 16, 14, 4096, 768, 12, 12, 768),
    "h14": (1280, 32, 16, 14, 5120, 1024, 16, 24, 1024),
    "g14": (1408, 40, 16, 14, 6144, 1024, 16, 24, 1024),
}


def get_config(arg=""):
    words = [w for w in arg.split(",") if w]
    size = next((w for w in words if w in SIZES), "b32")
    width, depth, heads, patch, mlp, text_width, text_heads, text_depth, embed_dim = SIZES[size]
    c = common.base()
    c.batch_size, c.steps = 4096, 100_000
    c.modalities.image = common.image_tower(
        size=224,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=mlp,
        eps=1e-5,
        patch_bias=False,
        pre_norm=True,
        final_norm="pooled",
        proj_bias=False,
        scan=True,
        remat="elementwise",
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
        depth=text_depth,
        heads=text_heads,
        mlp_dim=4 * text_width,
        eps=1e-5,
        causal=True,
        mask_padding=False,
        pool="eot",
        eot_id=3,
        proj_bias=False,
        scan=True,
        remat="elementwise",
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
    if "tiled" in words:
        size = 224 if patch == 14 else 256
        c.modalities.image.update(size=size, class_token=False, pool="mean", remat="full")
        c.modalities.text.update(max_length=64, remat="full")
        c.model.attention_kernel = "bfloat16"
    if "unrolled" in words:
        c.modalities.image.unroll, c.modalities.text.unroll = depth, text_depth
        if "tiled" in words:
            c.modalities.image.remat, c.modalities.text.remat = "context+residual+up", "none"
    return common.recipe(c, arg, default="clip", own=(*SIZES, "tiled", "unrolled"))
