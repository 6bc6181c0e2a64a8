"""Grids of characters as images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Colour = tuple[int, int, int]


def image_of(text: str, colours: Mapping[str, Colour], pixels_per_cell: int = 16) -> np.ndarray:
    """``uint8 [H * pixels_per_cell, W * pixels_per_cell, 3]``: each character of ``text``, whose lines have one length,
    as a square of its colour.

    >>> image_of(".#", {".": (0, 0, 0), "#": (9, 9, 9)}, 1).tolist()
    [[[0, 0, 0], [9, 9, 9]]]
    """
    cells = np.array([[colours[character] for character in line] for line in text.splitlines()], np.uint8)
    return cells.repeat(pixels_per_cell, axis=0).repeat(pixels_per_cell, axis=1)
