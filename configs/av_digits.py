"""A written and a spoken digit: fusion of image and audio, its alignment, and missing modalities.

The cell of the fusion grid is two keys: --config.model.fusion.stage=early|hybrid|late and
--config.model.fusion.operator=concat|attention|tensor (and low_rank_tensor, gated, multiplicative).

Variants, joined by commas: `image` and `audio` (one modality alone), `degraded` (both drowned in
noise until each alone errs), `missing` (learns from every subset of the modalities), `dropout`
(modality dropout instead, which samples the subsets), `contrastive`, `cca` and `critic` (alignment
beside the classification; critic is contrastive and adversarial), `adversarial` (a generator h_m
with a decoder against a discriminator of features), `formula` (the same without decoder and
penalty), `speakers` (the voice in validation is not in training), `smoke`.
"""

from configs import common

VARIANTS = (
    "image",
    "audio",
    "degraded",
    "missing",
    "dropout",
    "contrastive",
    "cca",
    "critic",
    "adversarial",
    "formula",
    "speakers",
    "smoke",
)
PAIR = dict(a="image", b="audio")
VOICES = ("george", "jackson", "nicolas", "yweweler")


def get_config(arg=""):
    words = common.words_of(arg, VARIANTS)
    c = common.base()
    c.steps, c.batch_size, c.optim.lr.peak = 600, 64, 2e-3
    sizes = dict(width=64, depth=4, heads=4, mlp_dim=256, pool="mean")
    c.modalities.image = common.image_tower(
        size=28, patch=7, class_token=False, augment="pad_crop", background=(0, 0, 0), **sizes
    )
    c.modalities.audio = common.audio_tower(
        sample_rate=8000, mels=40, window=200, hop=80, fft=256, patch=(40, 8), **sizes
    )
    c.modalities.audio.augment = "speed"
    common.joint(c, stage="hybrid", operator="attention", width=64, depth=2, heads=4, mlp_dim=256)
    c.model.classifiers.digit = common.classifier(10)
    c.model.embed_dim = 32
    c.data.source = "records"
    c.data.kwargs = dict(
        root="../shared/data/av_digits",
        rows="pairs_{split}.jsonl",
        id="{digit}",
        labels=dict(label="digit"),
        modalities=dict(
            image=dict(npz="mnist_*.npz", index="index", row="{mnist_index}"),
            audio=dict(tar="fsdd*.tar", member="{audio_id}.wav"),
        ),
    )
    c.data.eval_splits = ("val",)
    c.eval.names = ("classification", "robustness")
    c.eval.best = "val/classify/digit/accuracy"
    for word in words:
        if word in CHANGES:
            CHANGES[word](c)
    return common.smoke(c) if "smoke" in words else c


def only(m):
    """A change that leaves one modality."""

    def change(c):
        for other in set(c.modalities) - {m}:
            del c.modalities[other]
            del c.data.kwargs.modalities[other]

    return change


def degraded(c):
    for m, level in dict(image=0.72, audio=0.86).items():
        if m in c.modalities:
            c.modalities[m].noise = level


def missing(c):
    c.objectives.classification.subsets = True


def dropout(c):
    with c.ignore_type():
        c.modality_dropout = dict(schedule="ramp", end=0.3, steps=0.2)


def contrastive(c):
    c.objectives.contrastive = dict(weight=0.1, **PAIR)
    c.eval.names += ("retrieval", "gap")


def cca(c):
    c.objectives.cca = dict(weight=0.03, ridge=0.01, **PAIR)
    c.eval.names += ("gap", "cca")


def critic(c):
    contrastive(c)
    c.model.heads += ("critic",)
    # A critic of Lipschitz constant 1 lowers the gap; a sharper one drives the modalities around.
    c.model.critic.spectral = True
    c.objectives.modality_critic = dict(weight=1.0)
    c.objectives.modality_confusion = dict(weight=dict(schedule="ramp", end=1.0, steps=1.0))


def adversarial(c):
    formula(c)
    c.model.heads += ("decoder",)
    c.model.critic.spectral = True
    c.objectives.generator.reconstruction = 1.0
    c.objectives.discriminator.r1 = 0.1


def formula(c):
    c.model.heads += ("discriminator",)
    c.objectives.generator = dict(weight=0.1)
    c.objectives.discriminator = dict(weight=1.0)
    c.optim.critic.steps = 1
    c.steps *= 2  # every other step is the critic's


def speakers(c):
    def takes(voices):
        return tuple(f"{d}_{v}_{t}" for d in range(10) for v in voices for t in range(50))

    *known, new = VOICES
    c.data.kwargs.splits = dict(train=dict(audio_id=takes(known)), val=dict(audio_id=takes([new])))


CHANGES = dict(
    image=only("image"),
    audio=only("audio"),
    degraded=degraded,
    missing=missing,
    dropout=dropout,
    contrastive=contrastive,
    cca=cca,
    critic=critic,
    adversarial=adversarial,
    formula=formula,
    speakers=speakers,
)
