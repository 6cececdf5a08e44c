"""How fast each stack decodes, crops, resizes and flips photographs: images a second and core.

    python -m benchmarks.decode [--rounds 8] [--images 64] [--size 224] [--pixels 500x375]

The photographs are JPEGs of quality 90 to 95, 4:2:0, cut from those that scikit-image and
scikit-learn bring (made up where neither is installed). Every stack takes the same random crops of
50 to 100 % of the area. Stacks take turns, image set by image set, so that other work on the
machine slows all alike; times are CPU seconds of this process, ratios the median over rounds of
the stack's speed to that of the fastest. A library that is not installed is left out.
"""

import argparse
import importlib
import io
import time

import numpy as np
from PIL import Image

from multimodal.data import fast_image, image_ops
from multimodal.data.transforms import build_transform
from multimodal.errors import UserError

SCALE = (0.5, 1.0)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pixels", default="500x375", help="width x height of the JPEGs")
    args = parser.parse_args(argv)
    width, height = map(int, args.pixels.split("x"))
    files = photographs(args.images, width, height)
    print(
        f"{len(files)} JPEGs of {width}x{height}, {np.mean([len(f) for f in files]) / 1e3:.0f} kB "
        f"each, to {args.size} pixels"
    )
    table(measure(stacks(args.size), files, args.rounds))


def photographs(count, width, height):
    """Encoded JPEGs [count], the same at every call."""
    rng, sources, files = np.random.default_rng(0), real_photographs(), []
    for i in range(count):
        pixels = sources[i % len(sources)] if sources else made_up(rng, height, width)
        limits = pixels.shape[1], pixels.shape[0], width, height
        share = rng.uniform(0.6, 1.0) * min(limits[0] / limits[2], limits[1] / limits[3])
        w, h = share * width, share * height
        x, y = rng.uniform(0, limits[0] - w), rng.uniform(0, limits[1] - h)
        image = Image.fromarray(pixels).resize(
            (width, height), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h)
        )
        out = io.BytesIO()
        image.save(out, "JPEG", quality=int(rng.integers(90, 96)), subsampling="4:2:0")
        files.append(out.getvalue())
    return files


def real_photographs():
    """Pixels of the photographs that come with scikit-image and scikit-learn, or []."""
    found = []
    try:
        from skimage import data

        found += [data.astronaut(), data.coffee(), data.cat()]
    except ImportError:
        print("without scikit-image")
    try:
        from sklearn.datasets import load_sample_images

        found += load_sample_images().images
    except ImportError:
        print("without scikit-learn")
    return found


def made_up(rng, height, width):
    """Noise whose amplitudes fall with the frequency as a photograph's do."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    spectrum = np.fft.fft2(rng.standard_normal((4, height, width))) / (frequency + 0.003) ** 1.2
    light, *colours = np.fft.ifft2(spectrum).real
    pixels = np.stack(colours) / np.std(colours) * 15 + light / light.std() * 50 + 128
    return np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def stacks(size):
    """{name: function of (bytes, rng) to pixels [size, size, 3]}."""
    found = pillow_stacks(size)
    for build in (opencv_stacks, simplejpeg_stacks, turbojpeg_stacks, our_stacks):
        try:
            found |= build(size)
        except (ImportError, OSError, RuntimeError, UserError) as e:
            print(
                f"without {build.__name__.removesuffix('_stacks')}: {' '.join(str(e).split()):.90}"
            )
    return found


def pillow_stacks(size):
    """Pillow alone: as torchvision does it, and with its two ways to leave work out."""

    def stack(method, draft=False, reduce=None):
        def run(data, rng):
            image = Image.open(io.BytesIO(data))
            box = crop((image.height, image.width), rng)
            before = image.size
            if draft:  # the decoder halves while the smallest crop keeps enough pixels
                most = size / (SCALE[0] * image_ops.ASPECT[0]) ** 0.5
                image.draft("RGB", (int(most), int(most)))
            ratio = image.width / before[0]
            out = image.convert("RGB").resize(
                (size, size), method, box=[v * ratio for v in box], reducing_gap=reduce
            )
            return flip(np.asarray(out), rng)

        return run

    bicubic, bilinear = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
    return {
        "Pillow, bicubic": stack(bicubic),
        "Pillow, bilinear": stack(bilinear),
        "Pillow, draft, bilinear": stack(bilinear, draft=True),
        "Pillow, reduce, bilinear": stack(bilinear, reduce=1.0),
    }


def opencv_stacks(size):
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(0)

    def decode(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    return {
        "OpenCV, linear": with_cv2(cv2, decode, size, cv2.INTER_LINEAR),
        "OpenCV, area": with_cv2(cv2, decode, size, cv2.INTER_AREA),
    }


def simplejpeg_stacks(size):
    decode = importlib.import_module("simplejpeg").decode_jpeg
    cv2 = importlib.import_module("cv2")

    def fastest(data):
        return decode(data, fastdct=True, fastupsample=True)

    def halved(data):
        least = int(size / (SCALE[0] * image_ops.ASPECT[0]) ** 0.5)
        return decode(data, min_height=least, min_width=least, fastdct=True, fastupsample=True)

    linear = cv2.INTER_LINEAR
    return {
        "simplejpeg + Pillow, bicubic": with_pillow(decode, size),
        "simplejpeg + OpenCV, linear": with_cv2(cv2, decode, size, linear),
        "simplejpeg + OpenCV, area": with_cv2(cv2, decode, size, cv2.INTER_AREA),
        "simplejpeg, its fast switches + OpenCV, linear": with_cv2(cv2, fastest, size, linear),
        "simplejpeg, DCT scaling + OpenCV, linear": with_cv2(cv2, halved, size, linear),
    }


def turbojpeg_stacks(size):
    turbojpeg = importlib.import_module("turbojpeg")
    cv2 = importlib.import_module("cv2")
    decode = turbojpeg.TurboJPEG().decode

    def rgb(data):
        return decode(data, pixel_format=turbojpeg.TJPF_RGB)

    return {"PyTurboJPEG + OpenCV, linear": with_cv2(cv2, rgb, size, cv2.INTER_LINEAR)}


def our_stacks(size):
    """The transforms that training uses, with all their checks."""
    cfg = dict(size=size, augment="random_resized_crop", scale=SCALE, flip=True)
    ways = ("pillow", "fast") if fast_image.choose("auto") == "fast" else ("pillow",)
    return {
        f"this repository, decode={way!r}": build_transform("image", dict(cfg, decode=way), True)
        for way in ways
    }


def with_cv2(cv2, decode, size, method):
    def run(data, rng):
        pixels = decode(data)
        left, top, right, bottom = (round(v) for v in crop(pixels.shape, rng))
        out = cv2.resize(pixels[top:bottom, left:right], (size, size), interpolation=method)
        return flip(out, rng)

    return run


def with_pillow(decode, size):
    def run(data, rng):
        pixels = decode(data)
        return flip(image_ops.resample(pixels, size, crop(pixels.shape, rng)), rng)

    return run


def crop(shape, rng):
    square = 1
    return image_ops.random_box(shape, square, SCALE, rng) or (0, 0, shape[1], shape[0])


def flip(pixels, rng):
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def measure(found, files, rounds):
    """{name: CPU seconds an image, one a round}; the stacks take turns."""
    seconds = {name: [] for name in found}
    for turn in range(-1, rounds):  # the first round warms up
        for name, run in found.items():
            rng = np.random.default_rng(turn + 1)
            began = time.process_time()
            for data in files:
                run(data, rng)
            if turn >= 0:
                seconds[name].append((time.process_time() - began) / len(files))
    return {name: np.array(s) for name, s in seconds.items()}


def table(seconds):
    """Print images/s/core and ratios, fastest first."""
    order = sorted(seconds, key=lambda name: np.median(seconds[name]))
    print(f"\n{'stack':48} images/s/core  best   of fastest")
    for name in order:
        s = seconds[name]
        ratio = np.median(seconds[order[0]] / s)
        print(f"{name:48} {1 / np.median(s):13,.0f} {1 / s.min():5,.0f} {ratio:12.2f}")


if __name__ == "__main__":
    print(f"decode='auto' is {fast_image.choose('auto')!r} here")
    main()
