"""Starting from a run: what is taken over, what a linear probe trains, what is refused."""

import shutil

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multimodal import objectives
from multimodal.config import save_config
from multimodal.data.array_source import ArraySource
from multimodal.data.tokenizer import train_tokenizer
from multimodal.errors import UserError
from multimodal.interop import export_weights
from multimodal.nn.model import build_model
from multimodal.training import inputs, setup
from multimodal.training.checkpoint import Checkpoints
from multimodal.training.optim import make_optimizer
from multimodal.training.setup import initialised
from multimodal.training.sharding import SMALL, make_mesh
from multimodal.training.step import drop_modalities, make_step, new_state
from multimodal.training.transfer import from_run, is_run, tokenizer_of
from tests import laws


def make(c):
    """(model, initial parameters) of a tiny config."""
    model = build_model(c)
    return model, laws.initial(model, laws.tiny_batch(), seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with one checkpoint of a contrastive model, and its parameters."""
    folder = tmp_path_factory.mktemp("run")
    c = laws.tiny_config("contrastive")
    c.model.fusion.kind, c.model.heads, c.queue.size, c.ema.decay = "none", (), 0, 0.0
    _, params = make(c)
    checkpoints = Checkpoints(folder, 1, "")
    checkpoints.save(new_state(c, params, make_optimizer(c, params)).replace(step=jnp.int32(5)))
    checkpoints.close()
    save_config(c, folder)
    return folder, params


def task(folder, freeze):
    """The same towers with a classifier on the image."""
    c = laws.tiny_config("contrastive")
    c.model.fusion.kind, c.model.heads, c.queue.size, c.ema.decay = "none", (), 0, 0.0
    c.objectives = {"classification": {}}
    c.model.classifiers = {"kind": dict(of="image", classes=3, target="label", multi=False)}
    c.init.path, c.init.freeze, c.optim.weight_decay = str(folder), freeze, 0.1
    return c


@pytest.mark.parametrize("freeze", [True, False])
def test_probe_and_fine_tuning(run, freeze):
    folder, theirs = run
    assert is_run(folder) and is_run(folder / "checkpoints" / "5")
    c = task(folder, freeze)
    model, params = make(c)
    start = from_run(params, c.init)
    assert laws.worst(start["encoder_image"], theirs["encoder_image"]) == 0
    tx = make_optimizer(c, start)
    step = jax.jit(make_step(c, model, objectives.build(c, {}), tx))
    state = new_state(c, start, tx)
    for seed in range(2):
        state, _ = step(state, laws.tiny_batch(seed=seed))
    moved = {k: laws.worst(state.params[k], start[k]) > 0 for k in start if k != "temperature"}
    assert moved.pop("classifier_kind")
    assert moved.pop("encoder_image") != freeze
    assert not (freeze and any(moved.values()))


@pytest.mark.parametrize("place", ["", "/", "/checkpoints/5", "/checkpoints/5/"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_runs_tokenizer_comes_with_it(run, tmp_path, place, remote):
    """Its embeddings are those of its tokens: another tokenizer would give them to other words."""
    tokenizer = train_tokenizer(["a red dog", "ein roter Hund"] * 3, {"vocab_size": 60})
    source = ArraySource("train", text=["un chien rouge"] * 3)
    folder = shutil.copytree(run[0], tmp_path / "run")
    assert tokenizer_of(f"{folder}{place}") == ""  # a run without texts
    tokenizer.save(folder / "tokenizer.json")
    base = str(folder)
    if remote:
        base = f"memory://tokenizer{len(place)}"
        fsspec.filesystem("memory").put(f"{folder}/", f"{base}/", recursive=True)
    c = task(f"{base}{place}", False)
    c.modalities.text.transform, c.modalities.text.vocab_size = "text", tokenizer.vocab_size
    found = inputs.get_tokenizer(c, None, source)
    assert found.__getstate__() == tokenizer.__getstate__()
    c.tokenizer.vocab_size, c.init.path = tokenizer.vocab_size, ""
    assert inputs.get_tokenizer(c, None, source).__getstate__() != tokenizer.__getstate__()


def test_what_is_no_run_has_no_tokenizer(run, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")  # beside somebody's weights
    (tmp_path / "model.safetensors").write_text("")
    for path in ("", tmp_path, tmp_path / "model.safetensors"):
        assert tokenizer_of(path) == ""


@pytest.mark.parametrize("place", ["", "/checkpoints/5", "/checkpoints"])
def test_a_run_by_url(run, place):
    fsspec.filesystem("memory").put(f"{run[0]}/", "/run/", recursive=True)
    c = task(f"memory://run{place}", False)
    _, params = make(c)
    if place == "/checkpoints":
        with pytest.raises(UserError, match="neither a run with checkpoints nor"):
            initialised(params, c)
        return
    start = initialised(params, c)
    assert laws.worst(start["encoder_image"], run[1]["encoder_image"]) == 0


def test_other_sizes_and_other_towers_are_refused(run):
    c = task(run[0], False)
    c.modalities.image.width = c.modalities.text.width = 32
    with pytest.raises(UserError, match="encoder_image.* this model"):
        from_run(make(c)[1], c.init)
    c = task(run[0], False)
    c.modalities.sound = c.modalities.image
    batch = laws.tiny_batch() | {"sound": laws.tiny_batch()["image"]}
    params = jax.jit(build_model(c).init)(jax.random.key(0), batch)["params"]
    with pytest.raises(UserError, match="lacks encoder_sound"):
        from_run(params, c.init)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "file"])
def test_weights_go_to_the_devices_in_parts(kind, tmp_path, monkeypatch):
    """No device ever holds a large array whole, neither before nor after the import."""
    c = laws.tiny_config("contrastive")
    c.model.fusion.kind, c.model.heads, c.queue.size, c.ema.decay = "none", (), 0, 0.0
    c.model.temperature.bias = None
    sizes = dict(width=64, mlp_dim=256, scan=True)
    c.modalities.image.update(sizes, pre_norm=True, final_norm="pooled", patch_bias=False)
    c.modalities.text.update(sizes, causal=True, mask_padding=False, pool="eot", eot_id=-1)
    for m in c.modalities.values():
        m.proj_bias = False
    theirs = setup.build_state(c, make_mesh(fsdp=8))[2].replace(step=jnp.int32(5))
    if kind == "run":
        checkpoints = Checkpoints(tmp_path, 1, "")
        checkpoints.save(theirs)
        checkpoints.close()
        save_config(c, tmp_path)
        c.init.path = str(tmp_path)
    else:
        c.init.path, c.init.act = str(tmp_path / "weights.npz"), "gelu"
        np.savez(c.init.path, **export_weights(theirs.params, c, "clip_open_clip"))
    seen = []

    def spy(params, config, real=setup.initialised):
        seen.extend([params, real(params, config)])
        return seen[-1]

    monkeypatch.setattr(setup, "initialised", spy)
    c.seed = 1
    _, _, state = setup.build_state(c, make_mesh(fsdp=8))
    large = 0
    for params in (*seen, state.params):
        for x in (x for x in jax.tree.leaves(params) if x.size >= SMALL):
            assert {s.data.size for s in x.addressable_shards} == {x.size // 8}
            large += 1
    assert large >= 12
    assert laws.worst(seen[0]["encoder_image"], theirs.params["encoder_image"]) > 0
    assert laws.worst(state.params, theirs.params) == 0


def test_nothing_to_train_is_refused(run):
    c = task(run[0], True)
    c.model.classifiers = {}
    with pytest.raises(UserError, match="nothing is left to train"):
        make_optimizer(c, make(c)[1])


def test_modality_dropout():
    """The share asked for; one modality always stays; none comes back; keyed by example."""
    size, rng = 4000, jax.random.key(0)
    there = np.arange(size) % 4 != 0
    batch = {
        "image": np.zeros((size, 1)),
        "text": np.zeros((size, 1)),
        "index": np.arange(size),
        "image_present": there,
    }
    out = drop_modalities(batch, {"image": {}, "text": {}}, 0.3, rng)
    image, text = (np.asarray(out[f"{m}_present"]) for m in ("image", "text"))
    assert (image | text).all() and not (image & ~there).any() and text[~there].all()
    # Both drawn: the one with the larger draw stays.
    assert abs((~image[there]).mean() - (0.3 - 0.3**2 / 2)) < 0.03
    half = {k: v[::2] for k, v in batch.items()}
    again = drop_modalities(half, {"image": {}, "text": {}}, 0.3, rng)
    np.testing.assert_array_equal(again["text_present"], text[::2])
    same = drop_modalities(batch, {"image": {}, "text": {}}, 0.0, rng)
    np.testing.assert_array_equal(same["image_present"], there)
    only_one = drop_modalities(batch, {"image": {}, "text": {}}, 1.0, rng)
    assert (np.asarray(only_one["image_present"]) ^ np.asarray(only_one["text_present"])).all()
