"""The keys of each kind of modality, once, with what they mean; common.py has all others."""

from ml_collections import ConfigDict, FieldReference


def sides(number):
    """A key that may be a number or (height, width), whichever it is now."""
    return FieldReference(number, field_type=object)


def image_tower(**changes):
    """Keys of an image modality: a Vision Transformer over pixels."""
    c = ConfigDict()
    c.encoder = "vit"  # a name in nn/encoders.py
    c.size = sides(64)  # pixels, a number or (height, width)
    c.patch = sides(16)  # likewise; fills the size without a rest
    # What makes tokens of pixels: 'patch': a dense layer on each patch; 'conv': convolutions of
    # stride 2, as many as make one of a patch, which must be a power of two (Xiao et al. 2021):
    # learns small shapes from few pictures
    c.stem = "patch"
    c.width = 192
    c.depth = 4
    c.heads = 3
    c.mlp_dim = 768
    c.act = "gelu"  # 'gelu' | 'gelu_tanh' | 'quick_gelu' (OpenAI's CLIP weights) | 'relu'
    c.eps = 1e-6  # of LayerNorm
    c.class_token = True
    c.patch_bias = True
    c.pre_norm = False  # LayerNorm between embeddings and blocks (CLIP)
    # Where the last LayerNorm is: 'tokens' | 'pooled' (CLIP) | 'twice', tokens and then the pooled
    # one (HF's BLIP) | 'none'
    c.final_norm = "tokens"
    c.pool = "class"  # 'class' | 'mean' | 'map' (attention pooling, SigLIP) | 'none'
    c.pooler = False  # tanh(dense) on the pooled token (HF's ViT)
    c.proj = True  # project the pooled token to the shared space
    c.proj_bias = True
    c.mean = (0.5, 0.5, 0.5)  # pixel statistics, of values in 0..1
    c.std = (0.5, 0.5, 0.5)
    c.dropout = 0.0
    c.attention_dropout = 0.0
    c.init_std = 0.0  # 0: Xavier uniform; otherwise a normal of this deviation
    c.layer_scale = 0.0  # > 0: what the factors on residual branches start at (DINOv2: 1)
    c.scan = False  # scan over layers: compile time does not grow with depth
    c.unroll = 1  # of scan: layers in one turn of the loop; as many as depth: no loop, faster
    # What the backward pass computes again, for memory: 'none' | 'full' | 'products' (all but
    # matrix products) | 'dots' (attention's two as well) | 'attention' (all but its inputs and
    # output) | all but what is named, with +, of 'query', 'key', 'value', 'context', 'residual',
    # 'up'
    c.remat = "none"
    # Transform of the data, a name in data/transforms.py.
    c.transform = "image"
    c.augment = "none"  # 'none' | 'pad_crop' | 'random_resized_crop'
    # Where that and flip are done: 'host' | 'device': the host only decodes, once as long as its
    # cache holds, and 'random_resized_crop' is part of the step.
    c.augment_on = "host"
    c.host_size = sides(0)  # of 'device': the size that the host hands over; 0: 1.5 times the size
    c.scale = (0.5, 1.0)  # share of the area that random_resized_crop keeps
    c.flip = False  # mirrors left and right: wrong where captions name sides
    c.resize = "squash"  # 'squash' | 'crop': the largest central part of the size's aspect ratio
    c.background = (255, 255, 255)  # under transparent pixels
    c.max_pixels = 64_000_000  # larger images are refused from their header, before decoding
    # What decodes and scales training images: 'pillow' | 'fast' (the extra `fast`: values differ a
    # little) | 'auto': 'fast' where it is installed; the run's config.json has what was taken, and
    # a resumed run keeps it. Evaluation is always Pillow's.
    c.decode = "auto"
    c.noise = 0.0  # 0..1: every example is degraded this much, in training and evaluation
    c.update(changes)
    return c


def text_tower(**changes):
    """Keys of a text modality: a Transformer over token ids."""
    c = ConfigDict()
    c.encoder = "text"
    c.vocab_size = 4096
    c.max_length = 16  # tokens a caption is cut to, and padded to
    c.positions = 0  # rows of the position table, if more than max_length (BERT: 512)
    c.position_offset = 0  # the first token's row (RoBERTa: 2)
    c.pad_id = 0  # the id that fills captions up (RoBERTa: 1)
    c.width = 192
    c.depth = 2
    c.heads = 3
    c.mlp_dim = 768
    c.act = "gelu"
    c.norm = "pre"  # 'pre' (CLIP) | 'post' (BERT, ALBEF)
    c.eps = 1e-6
    c.causal = False  # True: CLIP
    c.mask_padding = True  # False: padding is attended to (CLIP, SigLIP)
    c.type_embed = 0  # token types in the weights (BERT: 2)
    c.embed_norm = False  # LayerNorm after the embeddings (BERT)
    c.final_norm = True
    c.pool = "class"  # 'class' | 'eot' (CLIP) | 'last' (SigLIP) | 'mean' | 'none'
    c.eot_id = -1  # for pool='eot': the end-of-text token; -1: the largest id (CLIP's vocabulary)
    c.pooler = False
    c.proj = True
    c.proj_bias = True
    c.dropout = 0.0
    c.attention_dropout = 0.0
    c.init_std = 0.02
    c.scan = False
    c.unroll = 1
    c.remat = "none"
    c.transform = "text"
    c.lower = False
    c.noise = 0.0
    c.update(changes)
    return c


def _blocks(c):
    """Keys that every tower's stack of Transformer blocks has."""
    c.width = 192
    c.depth = 4
    c.heads = 3
    c.mlp_dim = 768
    c.act = "gelu"
    c.eps = 1e-6
    c.proj = True
    c.proj_bias = True
    c.dropout = 0.0
    c.attention_dropout = 0.0
    c.init_std = 0.0
    c.layer_scale = 0.0  # > 0: what the factors on residual branches start at
    c.key_bias = True  # False: attention keys without bias (Whisper, VideoMAE)
    c.scan = False
    c.unroll = 1
    c.remat = "none"


def audio_tower(**changes):
    """Keys of an audio modality: a Transformer over a waveform or its log-mel spectrogram."""
    c = ConfigDict()
    c.encoder = "spectrogram"  # patches (AST) | 'whisper' (convolutions) | 'wav2vec2' (waveform)
    c.sample_rate = 16_000  # Hz; other rates are resampled
    c.seconds = 1.0  # longer clips are cut, shorter ones padded with silence
    # 'log_mel' (librosa's) | 'whisper' | 'kaldi' (AST): each original's window, scale, logarithm
    c.features = "log_mel"
    c.mels = 64
    c.window = 400  # samples
    c.hop = 160
    c.fft = 512
    c.fmin = 0.0  # Hz
    c.fmax = 0.0  # 0: half the sample rate
    c.spec_mean = -6.0  # of the features, which are normalised as (x - mean) / std; 'whisper' ones
    c.spec_std = 4.0  # are so already and stay as they are
    c.patch = (16, 8)  # mel bands, frames
    c.stride = ()  # (): the patch; AST's patches overlap
    # 'learned' | 'sinusoid': fixed; Whisper's own are fixed, but its files of weights hold them
    c.position_embedding = "learned"
    # Of 'wav2vec2': each wave is brought to zero mean and unit variance; then the convolutions.
    c.normalize_wave = False
    c.conv_dims = (512,) * 7
    c.conv_kernels = (10, 3, 3, 3, 3, 2, 2)
    c.conv_strides = (5, 2, 2, 2, 2, 2, 2)
    c.position_kernel = 128  # steps that the positional convolution sees
    c.position_groups = 16
    _blocks(c)
    c.pool = "mean"  # 'class' (spectrogram only) | 'mean' | 'none'
    c.class_token = False  # True: one even where the pool does not need it
    c.distillation_token = False  # a second one (AST); pool 'class' is then the mean of both
    c.transform = "audio"
    # 'none' | 'shift': moved in time, and made louder or quieter | 'speed': also faster or slower
    c.augment = "none"
    c.noise = 0.0
    c.max_seconds = 3600.0  # longer files are refused from their header
    c.update(changes)
    return c


def video_tower(**changes):
    """Keys of a video modality: a Transformer over tubelets, or a frame encoder and pooling."""
    c = ConfigDict()
    c.encoder = "video"  # tubelets (VideoMAE, ViViT) | 'frames' (a ViT a frame, pooled over time)
    c.frames = 16  # taken evenly over the clip
    c.size = 64  # pixels a side
    c.channels = 3  # 1: grey
    c.patch = 16
    c.tubelet = 2  # frames
    # 'joint' over space and time | 'factorised': in each frame first, then over time (ViViT's 2)
    c.attention = "joint"
    c.position_embedding = "learned"  # | 'sinusoid': fixed (VideoMAE)
    c.final_norm = "tokens"  # | 'none' (VideoMAE)
    c.motion = False  # True: each pixel less its mean over the clip
    # of 'frames': 'transformer' | 'mean' | 'concat' (a dense layer of all of them)
    c.temporal = "transformer"
    c.temporal_depth = 1  # blocks over time, where there are some
    _blocks(c)
    c.pool = "mean"  # 'class' | 'mean' | 'none'
    c.class_token = False  # True: one even where the pool does not need it
    c.mean = (0.5, 0.5, 0.5)  # pixel statistics; the first one for grey
    c.std = (0.5, 0.5, 0.5)
    c.transform = "video"
    c.augment = "none"  # 'none' | 'shift': moved by up to 1/16 of the size, all frames alike
    c.flip = False
    c.noise = 0.0
    c.max_pixels = 64_000_000  # a frame
    c.max_frames = 100_000
    c.update(changes)
    return c
