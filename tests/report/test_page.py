"""Where images and their boxes are on the page, read from the drawn pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskco.report.page import DPI, RED, Page, Part

LEFT, TOP, SIDE = 2.0, 1.0, 3.0  # inches


class OneImage(Part):
    """Black, but for a white box of rows 10 to 19 and columns 5 to 24, which is outlined."""

    height = 5.0

    def __init__(self, height: int, width: int, frame: str | None = None) -> None:
        self.image = torch.zeros(3, height, width)
        self.image[:, 10:20, 5:25] = 1
        self.frame = frame

    def draw(self, page: Page, top: float) -> None:
        shown = page.image(self.image, LEFT, top + TOP, SIDE, "image", self.frame)
        if self.frame is None:
            shown.outline(torch.tensor([[5, 10, 25, 20]]), (RED,))


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (900, 300)])
def test_an_image_fills_the_upper_left_of_its_square(height: int, width: int) -> None:
    pixels = Page([OneImage(height, width, frame="#00ff00")]).pixels
    black = (pixels == 0).all(2)
    rows, columns = np.flatnonzero(black.any(1)), np.flatnonzero(black.any(0))
    scale, rim = SIDE * DPI / max(height, width), 5  # the frame lies half on the image
    for found, start, length in ((rows, TOP, height), (columns, LEFT, width)):
        assert start * DPI <= found[0] <= start * DPI + rim
        assert start * DPI + length * scale - rim <= found[-1] <= start * DPI + length * scale
    assert tuple(pixels[round(TOP * DPI), round((LEFT + 0.1) * DPI)]) == (0, 255, 0)


def test_boxes_are_outlined_in_the_image_s_pixels() -> None:
    pixels = Page([OneImage(40, 60)]).pixels.astype(int)
    scale = SIDE * DPI / 60
    x1, y1, x2, y2 = (round(at) for at in (LEFT * DPI + 5 * scale, TOP * DPI + 10 * scale,
                                            LEFT * DPI + 25 * scale, TOP * DPI + 20 * scale))  # fmt: skip
    red = np.array([int(RED[i : i + 2], 16) for i in (1, 3, 5)])
    middle = (x1 + x2) // 2, (y1 + y2) // 2
    for x, y in ((x1, middle[1]), (x2, middle[1]), (middle[0], y1), (middle[0], y2)):
        near = pixels[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
        assert np.abs(near - red).sum(1).min() < 30
    assert (pixels[middle[1], middle[0]] == 255).all()
