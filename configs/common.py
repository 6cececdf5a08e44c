"""Every key of a config, once, with what it means. A config file changes values of these; it adds
none.
"""

from ml_collections import ConfigDict

from configs.towers import audio_tower, image_tower, text_tower, video_tower  # noqa: F401
from multimodal.errors import UserError
from multimodal.registry import nearest


def base():
    """The keys that are not a modality's, with defaults for small experiments on a CPU."""
    c = ConfigDict()
    c.seed = 0
    c.mode = "corrected"  # | 'albef_original': reproduces the original's step, flaws included
    c.steps = 1000
    c.batch_size = 256  # of all devices together
    # Of 'albef_original': objectives see the batch in so many parts, each alone, as the original's
    # do on so many GPUs
    c.local_groups = 1
    c.micro_batches = 1  # memory of one micro-batch at a time; the result does not change

    c.modalities = ConfigDict()  # name -> image_tower(), text_tower(), ...: see towers.py

    _model(c)
    # name -> {fn: a name in objectives/ (default: the name), weight, its keywords}; numbers may be
    # schedules. Of a config with two modalities `a` and `b` need not be named.
    c.objectives = ConfigDict()

    # Share of each modality that is missing from training examples (a number or a schedule); one
    # modality always stays.
    c.modality_dropout = 0.0

    c.ema = ConfigDict()
    c.ema.decay = 0.0  # of the teacher; 0: no teacher
    c.queue = ConfigDict()
    c.queue.size = 0  # teacher embeddings kept as further negatives; 0: no queue
    c.queue.modalities = ("image", "text")

    _optim(c)
    _mesh(c)
    _data(c)

    c.log_every = 20  # steps
    c.save_every = 500
    c.eval_every = 0  # 0: at the end only
    c.keep = 3  # newest checkpoints
    c.keep_best = 1  # more of them, the best by eval.best

    c.skip = ConfigDict()  # steps whose loss or gradient is not finite leave the state as it is
    c.skip.most = 10  # of them in a row; more end the run
    c.skip.spike = 0.0  # also those with so many times the gradients' usual norm; 0: no
    c.hang_seconds = 1800  # a step that takes longer dumps all stacks and ends the run; 0: never
    c.check_replicas_every = 0  # steps; compare what devices should hold alike, bit for bit; 0: no

    _eval(c)
    return c


def _mesh(c):
    """How devices share the work."""
    c.mesh = ConfigDict()
    c.mesh.replica = 0  # groups of devices that share gradients only; 0: the TPU slices
    c.mesh.data = -1  # devices that split the batch; -1: all that the others leave
    c.mesh.fsdp = 1  # devices that split batch and parameters
    c.mesh.tensor = 1  # devices that split what a rule names
    # ((path regex, partition spec), ...) instead of the fsdp rule: ('.*/mlp/up/kernel', ('fsdp',
    # 'tensor'))
    c.mesh.rules = ()
    c.mesh.heartbeat = 60  # seconds after which a process that went silent ends the job


def _data(c):
    """Where examples come from, who prepares them, and the tokenizer."""
    c.data = ConfigDict()
    c.data.source = "tfds"  # a name in data/sources.py, or 'package.module:Class'
    c.data.kwargs = ConfigDict()  # arguments of the source
    # Of whole examples in training, before the modalities' own: a name in data/augment.py -> its
    # arguments
    c.data.augment = ConfigDict()
    c.data.train_split = "train"
    c.data.eval_splits = ()
    c.data.threads = 2  # batches prepared at the same time; neither they nor workers change any
    c.data.workers = 0  # processes that prepare them, with so many threads each; 0: the main one
    c.data.max_bad_share = 0.01  # of records that cannot be read; more is an error

    c.tokenizer = ConfigDict()
    c.tokenizer.kind = "wordpiece"  # | 'unigram' | 'clip' (of an installed package, not trained)
    # a tokenizer.json, vocab.txt, CLIP's .txt.gz or SentencePiece's .model, also by URL; '': that
    # of the run of init.path, or else train one on the training captions
    c.tokenizer.path = ""
    c.tokenizer.vocab_size = 4096
    c.tokenizer.add_sep = True  # end a caption with [SEP]; the original ALBEF does not


def _model(c):
    """Sizes of the shared space, fusion, heads, critics and temperature."""
    c.model = ConfigDict()
    c.model.embed_dim = 128  # of the shared space
    # 'match' (does the pair belong together?), 'mlm' (masked words), 'retrieve' (projects h_m to
    # the shared space), 'critic' (of modalities), 'discriminator', 'decoder' and 'posterior' (of
    # h_m and the noise z beside it)
    c.model.heads = ()
    c.model.mlm_modality = "text"  # whose words the mlm head predicts
    c.model.dtype = "float32"  # of activations; parameters and losses stay float32
    # 'auto' | 'xla' | 'cudnn' (GPU, bfloat16) | 'flash' (TPU, Pallas): the same values; 'bfloat16':
    # logits of bfloat16 towers rounded where lengths are multiples of 128, for TPUs; else as 'auto'
    c.model.attention_kernel = "auto"
    c.model.quantize = ""  # 'int8' | 'fp8': matrix products of the blocks, by qwix
    c.model.fusion = ConfigDict()
    # 'none' | 'cross_attention' (ALBEF's: query over context) | 'joint' (all modalities into h_m,
    # by stage and operator)
    c.model.fusion.kind = "none"
    c.model.fusion.stage = "late"  # 'early' | 'hybrid' | 'late': see nn/joint.py
    # 'concat' | 'attention' | 'tensor' | 'low_rank_tensor' | 'gated' | 'multiplicative'
    c.model.fusion.operator = "concat"
    c.model.fusion.query = ""  # for 'attention': the modality that attends to the others; '': all
    c.model.fusion.bottleneck = 0  # for 'concat': tokens that all traffic passes through; 0: none
    c.model.fusion.standin = False  # a learned token for a missing modality; False: masked
    c.model.fusion.inner = 16  # for 'tensor' and a matrix: numbers a modality is first reduced to
    c.model.fusion.rank = 4  # for 'low_rank_tensor'
    c.model.fusion.form = "vector"  # for 'multiplicative': 'matrix' | 'vector' | 'scalar'
    c.model.fusion.width = 192  # of the query's tokens, or of h_m
    c.model.fusion.depth = 2  # of 'joint' at the stage 'hybrid': the blocks that each tower gives
    c.model.fusion.heads = 3
    c.model.fusion.mlp_dim = 768
    c.model.fusion.act = "gelu"
    c.model.fusion.norm = "pre"
    c.model.fusion.eps = 1e-6
    c.model.fusion.dropout = 0.0
    c.model.fusion.attention_dropout = 0.0
    c.model.fusion.init_std = 0.02
    c.model.fusion.scan = False
    c.model.fusion.unroll = 1
    c.model.fusion.remat = "none"
    # name -> {of: 'joint' or a modality, classes, target: the label's key, multi: several at once}
    c.model.classifiers = ConfigDict()
    c.model.critic = ConfigDict()  # critic, discriminator and decoder
    c.model.critic.hidden = 256
    c.model.critic.layers = 2
    c.model.critic.spectral = False  # spectral normalisation (not of the decoder)
    c.model.temperature = ConfigDict()
    c.model.temperature.kind = "log_scale"  # 'log_scale' (CLIP) | 'scalar' (ALBEF) | 'none'
    c.model.temperature.init = 0.07
    c.model.temperature.min = 0.01  # bounds, put back after each step
    c.model.temperature.max = 1.0
    c.model.temperature.bias = None  # start of a learned bias on the logits (SigLIP: -10.0)


def _optim(c):
    """The optimizer, and where its parameters start."""
    c.optim = ConfigDict()
    c.optim.lr = ConfigDict(dict(schedule="cosine", peak=1e-3, warmup=100, end=0.0))  # schedules.py
    c.optim.b1 = 0.9
    c.optim.b2 = 0.98
    c.optim.eps = 1e-6
    c.optim.weight_decay = 0.1
    c.optim.clip = 1.0  # global gradient norm; 0: off
    # ((path regex, lr factor, decay factor), ...); (): the mode's; lr factor 0 freezes
    c.optim.rules = ()

    c.optim.critic = ConfigDict()  # of critics and discriminators
    c.optim.critic.lr = 1.0  # factor on the learning rate
    c.optim.critic.b1 = 0.5
    c.optim.critic.weight_decay = 0.0
    c.optim.critic.steps = 0  # of theirs to one of everything else; 0: both at every step

    c.init = ConfigDict()  # start from other weights
    # A run's folder (or runs/x/checkpoints/500), .safetensors, .pth (tensors only), a folder that
    # holds one, or a URL of any of them
    c.init.path = ""
    c.init.freeze = False  # True: a linear probe, only classifiers train; False: everything does
    c.init.format = "auto"  # 'auto' or a name in interop/
    c.init.act = ""  # the weights' activation, where no config.json beside them tells
    c.init.allow_unused = ()  # regexes of their keys that may stay unused
    c.init.allow_missing = ()  # regexes of our parameters that may keep their random start
    c.init.resize_pos_embed = False


def _eval(c):
    """What is evaluated, and how."""
    c.eval = ConfigDict()
    c.eval.names = ("retrieval",)  # evaluators, evals/
    c.eval.batch_size = 256
    c.eval.rerank = 0  # re-rank this many by the matching head; 0: off
    c.eval.rerank_score = (
        "itm"  # 'itm': the head's logit alone (ALBEF) | 'sum': plus the cosine (BLIP)
    )
    c.eval.best = ""  # metric by which the best checkpoint is kept
    c.eval.use_ema = False  # evaluate the teacher
    c.eval.templates = ("a photo of a {}",)  # zero-shot prompts
    c.eval.pairs = ()  # of modalities to retrieve by each other; (): all
    c.eval.classify = ""  # modality that zero-shot takes; '': the image, or the first
    c.eval.prompt = "text"  # modality of its prompts
    c.eval.noise_levels = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the robustness evaluator
    c.eval.train_examples = 4000  # of the training split that probes and CCA are fitted on
    c.eval.pictures = 8  # queries drawn in the retrieval picture


def albef(c):
    """Contrast with a momentum teacher and queue, match, model masked words (Li et al. 2021)."""
    ramp = dict(schedule="ramp", end=0.4, steps=0.5)
    c.model.heads = ("match", "mlm")
    c.model.fusion.kind = "cross_attention"
    c.objectives.contrastive = dict(weight=1.0, momentum=True, alpha=ramp, columns="teacher")
    c.objectives.itm = dict(weight=1.0)
    c.objectives.mlm = dict(weight=1.0, momentum=True, alpha=ramp, max_predictions=5)
    c.ema.decay = 0.99  # ALBEF: 0.995, over 100 times as many steps
    c.queue.size = 2048
    return c


def clip(c):
    """Two towers and the softmax contrastive loss (Radford et al. 2021)."""
    c.objectives.contrastive = dict(weight=1.0)
    return c


def siglip(c):
    """Two towers and the sigmoid loss (Zhai et al. 2023): a learned bias, and a log scale that
    starts at log 10.
    """
    c.objectives.sigmoid = dict(weight=1.0)
    c.model.temperature.init = 0.1
    c.model.temperature.bias = -10.0
    return c


RECIPES = {"albef": albef, "clip": clip, "siglip": siglip}


def words_of(arg, known):
    """The comma-separated words of a config's argument. Raises UserError for an unknown one."""
    words = [w for w in arg.split(",") if w]
    for w in words:
        if w not in known:
            raise UserError(
                f"--config: no variant {w!r}{nearest(w, known)}; there are {', '.join(known)}"
            )
    return words


def recipe(c, arg, default="albef", own=()):
    """Apply what a config's argument asks for: a recipe's name, `albef_original`, `smoke`, joined
    by commas; `own`: words that the config itself has seen to.
    """
    words = words_of(arg, [*RECIPES, "albef_original", "smoke", *own])
    if "albef_original" in words:
        c.mode = "albef_original"
    chosen = [w for w in words if w in RECIPES] or [default]
    RECIPES[chosen[0]](c)
    return smoke(c) if "smoke" in words else c


def short_run(c):
    """What lets ALBEF learn from scratch in minutes: no queue, and the batch's own columns.

    Hundreds of steps are too few for a queue of stale embeddings and for columns without gradient.
    The contrastive part alone on emoji, 250 steps, R@1 of unseen combinations: 0.39 without a
    queue, 0.03 with one of 2,048. The original's mode keeps both.
    """
    if c.mode == "corrected" and c.objectives.get("contrastive", {}).get("momentum"):
        c.queue.size, c.objectives.contrastive.columns = 0, "student"
    return c


def use_emoji(c):
    """Train and evaluate on the embedded emoji set."""
    c.data.source = "tfds"
    c.data.kwargs = dict(name="emoji_names")
    c.data.train_split, c.data.eval_splits = "train", ("unseen_combination", "unseen_glyph")
    c.eval.best = "unseen_combination/text_to_image/r1"
    return c


def joint(c, **fusion):
    """All modalities into one representation h_m, by stage and operator; supervised."""
    c.model.fusion.update(kind="joint", init_std=0.0, **fusion)
    c.objectives.classification = dict(weight=1.0)
    c.eval.names = ("classification",)
    return c


def classifier(classes, target="label", of="joint", multi=False):
    """One entry of config.model.classifiers."""
    return dict(of=of, classes=classes, target=target, multi=multi)


SMALL = dict(width=32, heads=2, mlp_dim=64, depth=2)


def smoke(c):
    """Shrink a config to seconds on a CPU and the embedded data; everything that it does is still
    done.
    """
    if {"image", "text"} == set(c.modalities) and not c.model.classifiers:
        use_emoji(c)
        c.modalities.image.update(size=32, patch=8)
    else:
        use_toy(c)
    c.steps, c.batch_size, c.log_every, c.save_every, c.micro_batches = 4, 16, 2, 2, 1
    for m in c.modalities.values():
        m.update(SMALL)
        if m.encoder == "text":
            m.update(vocab_size=2048, max_length=12)
    c.tokenizer.update(path="", vocab_size=2048)
    c.model.fusion.update(SMALL, depth=1)
    c.model.embed_dim, c.model.dtype = 16, "float32"
    c.queue.size = min(c.queue.size, 64)
    c.eval.rerank = min(c.eval.rerank, 4)
    c.eval.noise_levels, c.eval.train_examples = (0.0, 1.0), 32
    c.eval.pictures = 2
    return c


def use_toy(c):
    """Train and evaluate on the embedded set of eight classes that any modality shows."""
    c.data.source = "toy"
    c.data.kwargs = dict(modalities=tuple(c.modalities), examples=32)
    c.data.train_split, c.data.eval_splits, c.eval.best = "train", ("val",), ""
    for m in c.modalities.values():
        if m.encoder == "vit":
            m.update(size=32, patch=8)
        if m.encoder in ("video", "frames"):
            m.update(size=32, patch=16, frames=4, tubelet=2, channels=3)
        if m.encoder == "spectrogram":
            m.update(sample_rate=8000, seconds=0.5, fmax=0.0)
    for one in c.model.classifiers.values():
        one.update(target="label", classes=8, multi=False)
    return c
