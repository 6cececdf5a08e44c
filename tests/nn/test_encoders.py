"""Audio and video encoders: per example, at depth 0, scanned, rematerialised, in order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.towers import audio_tower, image_tower, text_tower, video_tower
from multimodal.errors import UserError
from multimodal.interop import stack_layers
from multimodal.nn.encoders import ENCODERS, build_encoder
from multimodal.nn.layers import block_config
from multimodal.nn.spectrogram import log_mel
from multimodal.nn.video import tubelets
from multimodal.nn.vit import patchify

BLOCKS = {"width": 12, "heads": 2, "mlp_dim": 16, "depth": 1}
SOUND = BLOCKS | {"seconds": 0.05, "mels": 16, "patch": (8, 2)}
FILM = BLOCKS | {"frames": 4, "size": 8, "patch": 4}
CONVS = {"conv_dims": (6, 6), "conv_kernels": (10, 4), "conv_strides": (5, 4)}
AST = {"pool": "class", "distillation_token": True, "stride": (6, 1), "features": "kaldi"}
WAV2VEC2 = {"encoder": "wav2vec2", "position_kernel": 4, "position_groups": 3, **CONVS}
WHISPER = {"encoder": "whisper", "features": "whisper", "key_bias": False}

TOWERS = {
    "spectrogram": audio_tower(**SOUND),
    "ast": audio_tower(**SOUND | AST),
    "whisper": audio_tower(**SOUND | WHISPER),
    "wav2vec2": audio_tower(**SOUND | WAV2VEC2, normalize_wave=True),
    "joint": video_tower(**FILM),
    "joint_sinusoid": video_tower(**FILM, position_embedding="sinusoid", pool="class"),
    "factorised": video_tower(**FILM, attention="factorised", channels=1),
    "factorised_class": video_tower(**FILM, attention="factorised", pool="class"),
    "frames": video_tower(**FILM, encoder="frames", pool="class"),
    "frames_mean": video_tower(**FILM, encoder="frames", temporal="mean", pool="none"),
    "frames_concat": video_tower(**FILM, encoder="frames", temporal="concat", motion=True),
    "layer_scale": video_tower(**FILM, layer_scale=0.1),
}
LENGTHS = {"spectrogram": 6, "ast": 6, "whisper": 3, "wav2vec2": 39, "factorised": 2, "frames": 5}
LENGTHS |= {"joint": 8, "joint_sinusoid": 9, "factorised_class": 3, "frames_mean": 4}
LENGTHS |= {"layer_scale": 8, "frames_concat": 4}


def inputs(name, batch=3):
    """Raw inputs of a tower."""
    c, rng = TOWERS[name], np.random.default_rng(0)
    if c.transform == "audio":
        return rng.normal(size=(batch, 800)).astype(np.float32) / 4
    shape = (batch, c.frames, c.size, c.size, c.channels)
    return rng.integers(0, 256, shape).astype(np.uint8)


def module_of(name, **changes):
    """The module of a tower."""
    return build_encoder(TOWERS[name].to_dict() | changes, dtype="float32")


@functools.cache
def built(name, **changes):
    """(module, random parameters) of a tower: only their shapes are its initialisers'."""
    module, rng = module_of(name, **changes), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs(name), jnp.ones(3, bool))
    draw = functools.partial(rng.normal, scale=0.3)
    return module, jax.tree.map(lambda s: draw(size=s.shape).astype(np.float32), shapes)


def run(module, params, x, present=None, keys=None):
    """Tokens and pooled features, compiled."""
    present = jnp.ones(len(x), bool) if present is None else present
    return jax.jit(module.apply)(params, x, present, keys)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_every_encoder_is_tried():
    assert {c.encoder for c in TOWERS.values()} == set(ENCODERS) - {"vit", "text"}


@pytest.mark.parametrize("name", TOWERS)
def test_rows_stand_alone(name):
    """An absent or another neighbour changes nothing; an absent example has no token."""
    module, params = built(name)
    x = inputs(name)
    tokens, pooled = run(module, params, x)
    assert tokens.x.shape == (3, tokens.mask.shape[1], 12) and tokens.mask.all()
    assert (pooled is None) == (TOWERS[name].pool == "none")
    other = x.copy()
    other[1:] = 0
    changed, pooled_changed = run(module, params, other, jnp.array([True, False, True]))
    close(changed.x[0], tokens.x[0])
    assert changed.mask.any(1).tolist() == [True, False, True]
    assert np.isfinite(changed.x).all()
    if pooled is not None:
        assert pooled.shape == (3, 12)
        close(pooled_changed[0], pooled[0])


@pytest.mark.parametrize("name", TOWERS)
def test_depth_0_has_no_blocks(name):
    module, params = built(name, depth=0)
    tokens, _ = run(module, params, inputs(name))
    names = [jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert not [n for n in names if "block" in n]
    assert tokens.x.shape == (3, LENGTHS[name], 12)


@pytest.mark.parametrize("name", ["ast", "wav2vec2", "factorised"])
def test_scan_and_remat_change_nothing(name):
    x = inputs(name)
    module, params = built(name, depth=2, temporal_depth=2)
    tokens, _ = run(module, params, x)
    scanned, shapes = built(name, depth=2, temporal_depth=2, scan=True, remat="full")
    stacked = stack_layers(params, shapes)
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(np.shape, shapes)
    close(run(scanned, stacked, x)[0].x, tokens.x)


@pytest.mark.parametrize("name", ["ast", "whisper", "wav2vec2", "factorised", "frames"])
def test_dropout_goes_by_example(name):
    """Batches in another order draw the same; without keys nothing drops out."""
    module, params = module_of(name, dropout=0.3, attention_dropout=0.3), built(name)[1]
    x, keys, order = inputs(name), jax.random.split(jax.random.key(1), 3), np.array([2, 0, 1])
    tokens, _ = run(module, params, x, keys=keys)
    permuted, _ = run(module, params, x[order], keys=keys[order])
    close(permuted.x, tokens.x[order])
    assert np.abs(run(*built(name), x)[0].x - tokens.x).max() > 1e-2
    twins, _ = run(module, params, x[[0, 0, 0]], keys=keys)
    assert np.abs(twins.x[0] - twins.x[1]).max() > 1e-2


@pytest.mark.parametrize("name", ["spectrogram", "whisper"])
def test_spectrograms_pass_as_they_are(name):
    module, params = built(name)
    c = TOWERS[name]
    features = log_mel(inputs(name), c.features, mels=16)
    if c.features == "log_mel":
        features = (features - c.spec_mean) / c.spec_std
    close(run(module, params, features)[0].x, run(module, params, inputs(name))[0].x)
    with pytest.raises(UserError, match="the model takes 16 mel bands x . frames"):
        module.apply(params, features[:, :, 1:], jnp.ones(3, bool))


def test_silence_has_a_finite_gradient():
    for name in ("spectrogram", "whisper", "wav2vec2"):
        module, params = built(name)

        def loss(p, x, module=module):
            return module.apply(p, x, jnp.ones(1, bool))[0].x.sum()

        gradients = jax.jit(jax.grad(loss, (0, 1)))(params, jnp.zeros((1, 800)))
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_ast_pools_both_tokens():
    tokens, pooled = run(*built("ast"), inputs("ast"))
    close(pooled, tokens.x[:, :2].mean(1))
    tokens, pooled = run(*built("ast", distillation_token=False), inputs("ast"))
    close(pooled, tokens.x[:, 0])


def test_overlapping_patches_are_a_convolution():
    x = np.random.default_rng(0).normal(size=(2, 17, 14, 3)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(6, 4, 3, 5)).astype(np.float32)
    for stride in ((6, 4), (5, 3), (2, 1)):
        want = jax.lax.conv_general_dilated(
            x, w, stride, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        close(patchify(x, (6, 4), stride) @ w.reshape(-1, 5), want.reshape(2, -1, 5))


def test_tubelets_are_a_convolution():
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 8, 3)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(2, 4, 4, 3, 5)).astype(np.float32)
    want = jax.lax.conv_general_dilated(
        x, w, (2, 4, 4), "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    close(tubelets(x, 2, 4) @ w.reshape(-1, 5), want.reshape(2, 2, 4, 5))


def test_motion_sees_no_still_picture():
    """A picture that is added to every frame changes nothing; one in a single frame does."""
    x = inputs("frames_concat").astype(np.float32) / 255
    still = np.random.default_rng(1).normal(size=x[:, :1].shape).astype(np.float32)
    module, params = built("frames_concat")
    plain = run(module, params, x)[1]
    close(run(module, params, x + still)[1], plain)
    x[:, :1] += still
    assert np.abs(run(module, params, x)[1] - plain).max() > 1e-2


def test_tokens_are_where_the_documentation_says():
    """At depth 0 a changed pixel moves one tubelet, or one time, only."""
    x = inputs("joint", 1).astype(np.float32)
    other = x.copy()
    other[0, 3, 1, 6] += 1.0  # time 1, row 0, column 1
    for name, changes, want in (
        ("joint", {}, 5),
        ("joint_sinusoid", {}, 6),
        ("factorised", {}, 1),
        ("factorised_class", {"depth": 1, "temporal_depth": 0, "pool": "class"}, 2),
        ("frames_mean", {}, 3),
    ):
        changes = {"depth": 0, "channels": 3} | changes
        module = module_of(name, **changes)
        params = jax.jit(module.init)(jax.random.key(0), x, jnp.ones(1, bool))
        both, _ = run(module, params, np.concatenate([x, other]))
        moved = np.abs(both.x[0] - both.x[1]).max(-1)
        assert np.flatnonzero(moved > 1e-6).tolist() == [want], name


def test_bytes_are_normalised_and_grey_takes_the_first_statistics():
    module = module_of("factorised", mean=(0.2, 0.5, 0.5), std=(0.25, 0.5, 0.5))
    params = built("factorised")[1]
    x = inputs("factorised")
    floats = (x / np.float32(255) - np.float32(0.2)) / np.float32(0.25)
    close(run(module, params, x)[0].x, run(module, params, floats)[0].x)


def test_eight_devices_give_what_one_gives():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for name in ("spectrogram", "factorised"):
        module, params = built(name)
        x = inputs(name, 8)
        with jax.set_mesh(mesh):
            spread = run(module, params, jax.device_put(x, spec))[1]
        close(spread, run(module, params, x)[1])


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("wav2vec2", {"pool": "class"}, "Wav2Vec2 has no 'class'"),
        ("whisper", {"pool": "class"}, "WhisperEncoder has no 'class'"),
        ("joint", {"pool": "map"}, "VideoTransformer has no 'map'"),
        ("joint", {"attention": "divided"}, "unknown 'divided'"),
        ("joint", {"tubelet": 3}, "multiples of tubelet 3"),
        ("joint", {"size": 16}, "the model takes frames x height x width x channels"),
        ("frames", {"temporal": "max"}, "unknown 'max'"),
        ("frames", {"frames": 3}, "the model takes frames x height x width x channels"),
        ("spectrogram", {"features": "mfcc"}, "unknown name 'mfcc'"),
        ("spectrogram", {"seconds": 1.0}, "set mels, seconds"),
    ],
)
def test_mistakes_are_told(name, changes, says):
    module = build_encoder(TOWERS[name].to_dict() | changes, dtype="float32")
    with pytest.raises(UserError, match=says):
        module.init(jax.random.key(0), inputs(name), jnp.ones(3, bool))


def test_wav2vec2_takes_waves():
    module, params = built("wav2vec2")
    with pytest.raises(UserError, match="wav2vec2 takes waves"):
        module.apply(params, jnp.zeros((3, 16, 6)), jnp.ones(3, bool))
    with pytest.raises(UserError, match="8 samples are too few"):
        module.apply(params, jnp.zeros((3, 8)), jnp.ones(3, bool))


def test_block_config_takes_a_modules_fields():
    text = build_encoder(text_tower(norm="post", causal=True, eps=1e-3).to_dict(), dtype="float32")
    c = block_config(text, cross=True)
    assert (c.norm, c.causal, c.cross, c.eps, c.width) == ("post", True, True, 1e-3, 192)
    image = build_encoder(image_tower(layer_scale=0.5).to_dict(), dtype="bfloat16")
    c = block_config(image)
    assert (c.norm, c.layer_scale, c.dtype, c.key_bias) == ("pre", 0.5, "bfloat16", True)


def test_a_convolutional_stem_sees_patterns_wherever_they_are():
    """One token a patch; a picture moved by a patch has moved tokens, away from its border."""
    plain = dict(class_token=False, pool="none", final_norm="none", depth=0)
    tower = build_encoder(image_tower(**BLOCKS | plain, size=(32, 64), patch=8, stem="conv"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    params = tower.init(jax.random.key(0), pixels, jnp.ones(2, bool))["params"]
    kernels = [params[f"stem_{i}"]["kernel"].shape for i in range(3)]
    assert kernels == [(3, 3, 3, 8), (3, 3, 8, 8), (3, 3, 8, 12)]
    params["pos_embed"] = jnp.zeros_like(params["pos_embed"])

    def tokens(pixels):
        found = run(tower, {"params": params | {"stack": {}}}, pixels)[0].x
        return found.reshape(2, 4, 8, 12)

    moved = np.roll(pixels, (8, 8), (1, 2))
    close(tokens(moved)[:, 2:, 2:], tokens(pixels)[:, 1:-1, 1:-1])
    assert not np.allclose(tokens(pixels)[:, 1:-1, 1:-1], tokens(pixels)[:, 2:, 2:], atol=1e-3)
    # each example by itself: no statistics of the batch
    other = np.concatenate([pixels[:1], moved[1:]])
    np.testing.assert_array_equal(tokens(other)[0], tokens(pixels)[0])


def test_text_positions_and_padding_of_roberta():
    """Row 2 is the first token's; id 1 is padding, and what it holds does not matter."""
    cfg = text_tower(**BLOCKS, vocab_size=9, max_length=4, position_offset=2, pad_id=1)
    module = build_encoder(cfg.to_dict(), dtype="float32")
    ids = jnp.array([[0, 5, 1, 1], [0, 5, 7, 3]])
    params = jax.jit(module.init)(jax.random.key(0), ids, jnp.ones(2, bool))
    assert params["params"]["pos_embed"].shape == (6, 12)
    tokens, _ = run(module, params, ids)
    assert tokens.mask.tolist() == [[True, True, False, False], [True] * 4]
    short, _ = run(module, params, ids[:1, :2])
    close(short.x, tokens.x[:1, :2])
    with pytest.raises(UserError, match="5 tokens a caption exceed the model's 4 positions"):
        module.apply(params, jnp.ones((1, 5), int), jnp.ones(1, bool))


def test_wide_pictures_have_the_patches_of_their_halves_row_by_row():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3), np.uint8)

    def tokens(pixels, size, patch):
        tower = build_encoder(image_tower(**BLOCKS | {"depth": 0}, size=size, patch=patch,
                              class_token=False, pool="mean", final_norm="none"))  # fmt: skip
        present = jnp.ones(len(pixels), bool)
        shapes = tower.init(jax.random.key(0), pixels, present)["params"]
        params = {k: {} if k == "stack" else v for k, v in shapes.items()}
        params["pos_embed"] = jnp.zeros_like(shapes["pos_embed"])
        return tower.apply({"params": params}, pixels, present)[0].x

    whole = tokens(pixels, (16, 32), (4, 8)).reshape(2, 4, 4, -1)
    halves = [tokens(pixels[:, :, s], 16, (4, 8)) for s in (slice(16), slice(16, None))]
    np.testing.assert_array_equal(
        whole, np.concatenate([h.reshape(2, 4, 2, -1) for h in halves], axis=2)
    )
    with pytest.raises(UserError, match="takes 32x16 pixels, the batch has 16x32"):
        tokens(pixels, (32, 16), 8)
