"""Video encoders: tubelets (VideoMAE, ViViT), and an image encoder for each frame."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from multimodal.errors import UserError
from multimodal.nn.audio import check_pool
from multimodal.nn.dense import Dense
from multimodal.nn.layers import Tokens, dropout, fold_keys, layer_norm, shared_fields
from multimodal.nn.rows import add_positions
from multimodal.nn.vit import PatchTransformer, ViT, normalize

POOLS = ("class", "mean", "none")


def pixels(module, video):
    """Floats [B, F, H, W, C] of a video as the module's config says.

    Raises UserError for other sizes.
    """
    want = (module.frames, module.size, module.size, module.channels)
    if video.shape[1:] != want:
        raise UserError(
            f"video: the model takes frames x height x width x channels {want}, the batch has "
            f"{video.shape[1:]}: set modalities.<m>.frames, size and channels to the data's"
        )
    mean, std = module.mean[: module.channels], module.std[: module.channels]
    if not module.motion:
        return normalize(video, mean, std, module.dtype)
    # In half precision little would be left of a small difference of large numbers.
    video = normalize(video, mean, std, jnp.promote_types(module.dtype, jnp.float32))
    return (video - video.mean(1, keepdims=True)).astype(module.dtype)


def tubelets(video, depth, patch):
    """[B, F, H, W, C] -> [B, F/t, patches, t*p*p*C]; a dense layer on it is the 3-D convolution."""
    b, f, h, w, c = video.shape
    x = video.reshape(b, f // depth, depth, h // patch, patch, w // patch, patch, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, f // depth, -1, depth * patch * patch * c)


def each_time(keys, count):
    """Per-example keys [B] -> one for each example and time [B * count]; None stays None."""
    if keys is None:
        return None
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(lambda k: fold(k, jnp.arange(count)))(keys).reshape(-1)


class Sequence(PatchTransformer):
    """The shared Transformer over features [B, L, width] that are embedded already."""

    @nn.compact
    def __call__(self, x, present, keys=None):
        return self.transform(x, present, keys)


class ClipTransformer(PatchTransformer):
    """What the video encoders share: fields of a clip, and a Transformer over time."""

    class_token: bool = False  # True also where the pool is 'class'
    frames: int = 16
    size: int = 224
    channels: int = 3
    patch: int = 16
    motion: bool = False  # see what moves only: each pixel less its mean over the clip
    temporal_depth: int = 1
    pool: str = "mean"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def has_class_token(self):
        return self.class_token or self.pool == "class"

    def part(self, cls, name, **changes):
        """A module with this one's fields, and changes."""
        fields = shared_fields(self, cls) | {"class_token": self.has_class_token()}
        return cls(**fields | changes, name=name)

    def one_time(self, cls, name, x, present, keys):
        """Features [B, T, width] of x [B, T, ...] by a module that sees one time at once."""
        b, t = x.shape[:2]
        pool = "class" if self.has_class_token() else "mean"
        module = self.part(cls, name, pool=pool)
        x = x.reshape(b * t, *x.shape[2:])
        return module(x, jnp.repeat(present, t), each_time(keys, t))[1].reshape(b, t, -1)

    def over_time(self, x, present, keys):
        """One feature a time [B, T, D] -> (Tokens, pooled), through `temporal_depth` blocks."""
        depth = self.temporal_depth if self.depth else 0
        return self.part(Sequence, "temporal", depth=depth)(x, present, keys)


class VideoTransformer(ClipTransformer):
    """A Transformer over tubelets: blocks of `tubelet` frames x `patch` x `patch` pixels.

    Takes uint8 [B, frames, size, size, channels], normalised here, or floats as they are.
    attention 'joint' (VideoMAE, Tong et al. 2022; ViViT's model 1): all tubelets attend to all.
      Tokens: the class token if there is one, then tubelets [time, row, column], time outermost.
    attention 'factorised' (ViViT's model 2, Arnab et al. 2021): `depth` blocks over the tubelets of
      one time, whose class token (or mean) is that time's feature; then `temporal_depth` blocks
      over times. Tokens: the class token if there is one, then frames / tubelet times.
    depth 0 leaves out the blocks over time as well.
    """

    tubelet: int = 2
    attention: str = "joint"

    @nn.compact
    def __call__(self, video, present, keys=None, mask=None):
        check_pool(self, POOLS)
        if self.frames % self.tubelet or self.size % self.patch:
            raise UserError(
                f"config.modalities.<m>: frames {self.frames} and size {self.size} must be "
                f"multiples of tubelet {self.tubelet} and patch {self.patch}"
            )
        x = tubelets(pixels(self, video), self.tubelet, self.patch)
        x = Dense(self.width, dtype=self.dtype, name="patch_embed")(x)
        if self.attention == "joint":
            return self.transform(x.reshape(len(x), -1, self.width), present, keys)
        if self.attention != "factorised":
            raise UserError(
                f"config.modalities.<m>.attention: unknown {self.attention!r}; "
                "known: joint, factorised"
            )
        x = self.one_time(Sequence, "spatial", x, present, fold_keys(keys, 0))
        return self.over_time(x, present, fold_keys(keys, 1))


class FrameTransformer(ClipTransformer):
    """The image ViT on each frame, and a pooling over time.

    Takes uint8 [B, frames, size, size, channels], normalised here, or floats as they are. A frame's
    feature is its class token, or the mean of its patches. temporal 'mean' averages those;
    'concat' takes a dense layer of all, with weights of its own for each time; 'transformer' runs
    `temporal_depth` blocks over them. Tokens: with a temporal Transformer and a
    class token that one first, then one token a frame. depth 0 leaves out the blocks over time.
    """

    temporal: str = "transformer"  # | 'mean' | 'concat'

    @nn.compact
    def __call__(self, video, present, keys=None, mask=None):
        check_pool(self, POOLS)
        if self.temporal not in ("transformer", "mean", "concat"):
            raise UserError(
                f"config.modalities.<m>.temporal: unknown {self.temporal!r}; "
                "known: transformer, mean, concat"
            )
        video = pixels(self, video)
        x = self.one_time(ViT, "frame", video, present, fold_keys(keys, 0))
        if self.temporal == "transformer":
            return self.over_time(x, present, fold_keys(keys, 1))
        if self.temporal == "concat":  # tokens that another network can tell apart by time as well
            x = add_positions(x, self.positions(x.shape[1:]))
        mask = jnp.broadcast_to(present[:, None], x.shape[:2])
        pooled = None
        if self.pool != "none":
            pooled = x.mean(1) if self.temporal == "mean" else self.over_all(x, keys)
        return Tokens(x, mask, fold_keys(keys, 1)), pooled

    def over_all(self, x, keys):
        """A dense layer of the features of all times [B, T, D] -> [B, width]."""
        x = dropout(x.reshape(len(x), -1), self.dropout, fold_keys(keys, 2))
        x = Dense(self.width, dtype=self.dtype, name="times")(x)
        return layer_norm(self.eps, self.dtype, "times_norm")(x)
