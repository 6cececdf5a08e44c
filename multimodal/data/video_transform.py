"""The transform of video: a few frames of fixed size."""

import numpy as np

from multimodal.data import image_ops
from multimodal.data.image_codec import MAX_PIXELS
from multimodal.data.transforms import choice, refuse_text
from multimodal.data.video_codec import MAX_FRAMES, decode_video
from multimodal.errors import UserError

AUGMENTS = ("none", "shift")


class VideoTransform:
    """Video (see video_codec.decode_video) -> uint8 [frames, size, size, channels].

    Config: `frames` (taken evenly over the clip), `size`, `channels` (3, or 1: grey), `resize` (as
    of images), `augment` ('shift': moved by up to 1/16 of the size over black), `flip` (left and
    right); both do the same to every frame. `max_pixels` of a frame, `max_frames` of a clip.
    """

    def __init__(self, cfg, train, tokenizer=None):
        self.frames, self.size = int(cfg["frames"]), int(cfg["size"])
        self.channels = int(cfg.get("channels", 3))
        self.resize = choice("video", cfg, "resize", "squash", image_ops.RESIZES)
        self.shift = choice("video", cfg, "augment", "none", AUGMENTS) == "shift" and train
        self.flip = bool(cfg.get("flip", False)) and train
        self.limits = cfg.get("max_pixels", MAX_PIXELS), cfg.get("max_frames", MAX_FRAMES)
        if min(self.frames, self.size) < 1 or self.channels not in (1, 3):
            raise UserError(
                f"video transform: frames={self.frames}, size={self.size}, channels="
                f"{self.channels}; frames and size must be positive, channels 1 or 3"
            )

    def __call__(self, value, rng=None):
        return self.finish(self.decode(value), rng)

    def decode(self, value):
        """The part without randomness: the frames at their final size."""
        refuse_text("video", "a film", value)
        frames = decode_video(value, self.frames, *self.limits)
        frames = [image_ops.fit(frame, self.size, self.resize) for frame in frames]
        return image_ops.with_channels(np.stack(frames), self.channels)

    def finish(self, pixels, rng=None):
        """The random part: shift and flip; nothing without an rng."""
        if self.shift and rng is not None:
            pixels = image_ops.shift(pixels, max(1, self.size // 16), 0, rng)
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        return pixels

    def empty(self):
        """The array that stands for a missing video."""
        return np.zeros((self.frames, self.size, self.size, self.channels), np.uint8)
