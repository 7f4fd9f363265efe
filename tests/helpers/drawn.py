"""Images and boxes on the figure of a report or of a contact sheet."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.patches import Rectangle


def image_names(figure: Figure) -> list[str]:
    """In the order in which they were drawn."""
    return [str(artist.get_label()) for artist in figure.artists if isinstance(artist, BboxImage)]


def image(figure: Figure, name: str) -> np.ndarray:
    """[H, W, 3] in [0, 1], as it was given to the first image with this name."""
    found = (artist for artist in figure.artists if isinstance(artist, BboxImage) and artist.get_label() == name)
    return np.asarray(next(found).get_array())


def boxes(figure: Figure, of: str | None = None) -> list[Rectangle]:
    """All, or those that outline parts of the image with this label. They are in its pixels."""
    drawn = [artist for artist in figure.artists if isinstance(artist, Rectangle)]
    return [box for box in drawn if of is None or str(box.get_label()).endswith(f" of {of}")]
