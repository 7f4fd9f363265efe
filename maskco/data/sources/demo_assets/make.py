"""Makes the images in this folder again. README.md lists their sources and licences.

apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
pip download --no-deps scikit-image==0.26.0 && unzip scikit_image-*.whl -d skimage
python make.py fashion/usr/share/datasets/fashion-mnist skimage/skimage/data
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PER_CLASS = {"train": 400, "t10k": 120}  # the first of each class, in the order of the files
COLUMNS = 40
TEXTURES = ("brick", "grass", "gravel")


def read_idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def main(fashion: Path, skimage: Path) -> None:
    out = Path(__file__).parent
    for part, count in PER_CLASS.items():
        items = read_idx(fashion / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        labels = read_idx(fashion / f"{part}-labels-idx1-ubyte.gz", 8)
        chosen = np.concatenate([items[labels == label][:count] for label in range(10)])
        sheet = chosen.reshape(-1, COLUMNS, 28, 28).transpose(0, 2, 1, 3).reshape(-1, COLUMNS * 28)
        name = {"train": "items_train.png", "t10k": "items_test.png"}[part]
        Image.fromarray(sheet).save(out / name, optimize=True)
    for texture in TEXTURES:
        with Image.open(skimage / f"{texture}.png") as image:
            image.convert("L").resize((256, 256), Image.Resampling.LANCZOS).save(out / f"{texture}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
