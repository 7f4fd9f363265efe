"""Images in one NumPy file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from maskco.data.sources import SourceError, open_source
from maskco.training.loop import pretrain


def test_the_pictures_of_an_array_as_they_are(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), dtype=np.uint8)
    np.save(tmp_path / "photos.npy", pictures)
    source = open_source(tmp_path / "photos.npy")
    assert len(source) == 5 and source.name(3) == "photos.npy/3"
    for index, picture in enumerate(pictures):
        assert torch.equal(source[index], torch.from_numpy(picture).permute(2, 0, 1))
    source[0].zero_()  # a copy: the file stays as it was
    assert np.array_equal(np.load(tmp_path / "photos.npy"), pictures)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 40, 40, 3), np.float32), "it holds float32"),
        (np.zeros((5, 40, 40), np.uint8), r"it holds uint8 \[5, 40, 40\]"),
        (np.zeros((0, 40, 40, 3), np.uint8), r"it holds uint8 \[0, 40, 40, 3\]"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", array)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / "other.npy")


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "whole.npy", np.zeros((5, 40, 40, 3), np.uint8))
    whole = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-1])
    (tmp_path / "header.npy").write_bytes(whole.replace(b"(5, 40", b"(5, 4x"))
    np.savez(tmp_path / "archive.npz", np.zeros(3))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    os.mkfifo(tmp_path / "fifo.npy")
    cases = dict.fromkeys(("text", "empty", "objects", "short", "header"), "not a NumPy array file, or a damaged")
    cases |= {"archive": "an archive of arrays", "fifo": "is a pipe, socket or device", "missing": "no such file"}
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / f"{name}.npy")
        assert f"{name}.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_the_order_in_memory_does_not_matter(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), dtype=np.uint8)
    np.save(tmp_path / "photos.NPY", pictures)
    (tmp_path / "photos.NPY.npy").rename(tmp_path / "photos.NPY")
    np.save(tmp_path / "fortran.npy", np.asfortranarray(pictures))
    for name in ("photos.NPY", "fortran.npy"):
        assert np.array_equal(open_source(tmp_path / name)[2].permute(1, 2, 0).numpy(), pictures[2])


def test_a_run_learns_from_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "photos.npy", np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8))
    tiny = {"encoder": "test_resnet", "image_size": 32, "dim": 8, "queue_size": 12, "workers": 0, "device": "cpu"}
    result = pretrain(tmp_path / "photos.npy", tmp_path / "run", epochs=1, batch_size=4, **tiny)
    assert result.steps == 2
