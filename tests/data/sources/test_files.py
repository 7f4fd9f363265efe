"""Every image below a folder, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maskco.data.sources import SourceError, open_source
from maskco.data.sources.files import FolderSource
from small_pictures import folder_of_pictures, picture


def test_folder_is_read_recursively_in_order_and_in_any_case_of_extension(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("z.JPG", "a.png", "b/x.Webp", "b/deep/y.TIFF", ".hidden/no.png", "._resource.jpg"):
        picture(0).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert [source.name(i) for i in range(len(source))] == ["a.png", "b/deep/y.TIFF", "b/x.Webp", "z.JPG"]
    assert source[1].size == (60, 40)


def test_links_to_folders_are_followed_once_even_in_a_loop(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir(), (root / "inner").mkdir(parents=True)
    picture(0).save(root / "inner" / "a.png")
    picture(1).save(outside / "b.png")
    os.symlink(root, root / "inner" / "loop")
    os.symlink(outside, root / "link")
    os.symlink(outside, root / "second_link")
    os.symlink(tmp_path / "nowhere", root / "dangling")
    assert FolderSource(root).names == ["inner/a.png", "link/b.png"]


@pytest.mark.parametrize("ending", ["tar", "npy", "json"])
def test_a_folder_may_be_called_as_it_likes(tmp_path: Path, ending: str) -> None:
    root = tmp_path / f"photos.{ending}"
    root.mkdir()
    assert len(open_source(folder_of_pictures(root, 2))) == 2


def test_folders_without_pictures_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty" / "still").mkdir(parents=True)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("")
    with pytest.raises(SourceError, match="nothing is named"):
        open_source("")
    cases = {"missing": "no such folder", "empty": "is empty", "text": "is an image", "text/a.txt": "is a file"}
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
