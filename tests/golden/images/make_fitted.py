#!/usr/bin/env python3
"""Makes fitted.safetensors: images, and what Pillow and torchvision make of them.

    python3 tests/golden/images/make_fitted.py tests/golden/images/fitted.safetensors

A case NAME.CHANNELS.SIZE.CROP holds the fitted image, [SIZE, SIZE, CHANNELS] bytes; NAME the image, [H, W, 1 or 3]. Made with Pillow 13.0.
"""
import sys

import numpy
from PIL import Image
from safetensors.numpy import save_file
from torchvision.transforms import functional

# name: height, width, channels; sizes
CASES = {
    "portrait": (61, 50, 3, [32, 15]),  # as CelebA's 218x178, a half of a pixel in the centre's place
    "landscape": (40, 93, 3, [28, 8]),
    "tiny": (5, 7, 3, [32, 28]),
    "square": (32, 32, 3, [28, 33, 32]),
    "grey": (28, 28, 1, [32, 9]),
    "grey_tall": (47, 23, 1, [32]),
    "line": (1, 9, 1, [8]),
    "kept_height": (16, 41, 3, [16]),
}


def picture(rng, height, width, channels):
    """Noise beside ramps and edges: every weight shows, and sums reach 0 and 255."""
    y, x = numpy.mgrid[:height, :width]
    planes = [numpy.where((x // 3 + y // 4 + c) % 2, 255 * (x + y) // (height + width), rng.integers(0, 256, (height, width))) for c in range(channels)]
    image = numpy.stack(planes, -1).astype(numpy.uint8)
    image[: height // 4] = 255
    image[-(height // 4 + 1):, : width // 3] = 0
    return image


def fitted(image, channels, size, crop):
    picture = Image.fromarray(image[:, :, 0], "L") if image.shape[2] == 1 else Image.fromarray(image, "RGB")
    picture = picture.convert("L" if channels == 1 else "RGB")
    short, long = sorted(picture.size)
    sides = [size if side == short else int(size * side / short) for side in picture.size]
    picture = picture.resize(sides, Image.Resampling.BILINEAR)
    picture = functional.center_crop(picture, [size, size]) if crop == "centre" else picture.crop((0, 0, size, size))
    return numpy.asarray(picture).reshape(size, size, channels).copy()


def main():
    rng = numpy.random.default_rng(1)
    tensors = {}
    for name, (height, width, channels, sizes) in CASES.items():
        tensors[name] = image = picture(rng, height, width, channels)
        for size in sizes:
            for out in (1, 3):
                for crop in ("centre", "top") if height != width else ("centre",):
                    tensors[f"{name}.{out}.{size}.{crop}"] = fitted(image, out, size, crop)
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
