"""ALBEF-base at 256 px, as pre-trained by Li et al. 2021: ViT-B/16 and one BERT-base, half of it
fusion.

Give the data (tar shards and captions.jsonl) as --config.data.kwargs.folder and the tokenizer
(BERT's vocab.txt) as --config.tokenizer.path. `:albef_original` reproduces the original's step,
flaws included; the default corrects them. `:tiled` is for TPUs: bfloat16, 256 tokens an image (the
mean of the patches instead of a class token), 32 a text instead of 25, attention that rounds its
logits, rematerialisation.
"""

from configs import common


def get_config(arg=""):
    c = common.base()
    c.batch_size, c.steps = 512, 30 * 7_800  # 30 epochs of the 4 M images
    c.modalities.image = common.image_tower(
        size=256,
        width=768,
        depth=12,
        heads=12,
        mlp_dim=3072,
        augment="random_resized_crop",
        scale=(0.2, 1.0),
        flip=True,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        scan=True,
    )
    bert = dict(
        width=768,
        depth=6,
        heads=12,
        mlp_dim=3072,
        norm="post",
        eps=1e-12,
        dropout=0.1,
        attention_dropout=0.1,
        scan=True,
    )
    c.modalities.text = common.text_tower(
        vocab_size=30522,
        max_length=25,
        positions=512,
        type_embed=2,
        embed_norm=True,
        final_norm=False,
        lower=True,
        **bert,
    )
    c.model.fusion.update(**bert)
    c.model.embed_dim = 256
    c.model.temperature.update(kind="scalar", init=0.07, min=0.001, max=0.5)
    c.tokenizer.update(vocab_size=30522, add_sep="albef_original" not in arg)
    c.data.source = "jsonl_tar"
    c.data.kwargs = dict(folder="data/pretrain")
    c.data.eval_splits = ("val",)
    c.eval.rerank = 128
    c.eval.best = "val/mean_recall"
    words = arg.split(",")
    if "tiled" in words:
        c.modalities.image.update(class_token=False, pool="mean", remat="full")
        c.modalities.text.update(max_length=32, remat="full")
        c.model.fusion.remat = "full"
        c.model.dtype = c.model.attention_kernel = "bfloat16"
    common.recipe(c, arg, own=("tiled",))
    if "smoke" in words or "mlm" not in c.objectives:
        return c
    return _published(c, steps_per_epoch=7_800)


def _published(c, steps_per_epoch):
    """The published recipe's numbers, for data and schedules of its size."""
    ramp = dict(schedule="ramp", end=0.4, steps=steps_per_epoch)
    for name in ("contrastive", "mlm"):
        c.objectives[name].update(alpha=ramp)
    c.objectives.mlm.max_predictions = 0
    c.ema.decay, c.queue.size = 0.995, 65_536
    c.optim.update(b2=0.999, eps=1e-8, weight_decay=0.02, clip=0.0)
    c.optim.lr = dict(schedule="cosine", peak=1e-4, warmup=2000, end=1e-5)
    if c.mode == "albef_original":
        c.optim.lr = dict(
            schedule="albef",
            peak=1e-4,
            start=1e-5,
            end=1e-5,
            steps_per_epoch=steps_per_epoch,
            epochs=30,
        )
    return c
