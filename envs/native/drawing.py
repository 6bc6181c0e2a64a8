"""Grids as images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Colour = tuple[int, int, int]

# Of planes: those of Breakout (paddle, ball, trail, brick), and six more.
PLANES: tuple[Colour, ...] = (
    (200, 200, 200),
    (255, 255, 255),
    (90, 90, 90),
    (200, 90, 60),
    (90, 160, 220),
    (230, 190, 80),
    (110, 190, 110),
    (170, 110, 200),
    (80, 200, 190),
    (230, 130, 170),
)


def image_of(text: str, colours: Mapping[str, Colour], pixels_per_cell: int = 16) -> np.ndarray:
    """``uint8 [H * pixels_per_cell, W * pixels_per_cell, 3]``: each character of ``text``, whose lines have one length,
    as a square of its colour.

    >>> image_of(".#", {".": (0, 0, 0), "#": (9, 9, 9)}, 1).tolist()
    [[[0, 0, 0], [9, 9, 9]]]
    """
    cells = np.array([[colours[character] for character in line] for line in text.splitlines()], np.uint8)
    return cells.repeat(pixels_per_cell, axis=0).repeat(pixels_per_cell, axis=1)


def image_of_planes(planes: np.ndarray, pixels_per_cell: int = 16) -> np.ndarray:
    """``uint8 [H * pixels_per_cell, W * pixels_per_cell, 3]``: the ``planes [H, W, C]`` of a game on a grid, such as
    those of MinAtar, on black. A cell that is not 0 has its plane's colour of ``PLANES``, that of the first such plane.

    >>> image_of_planes(np.array([[[0, 0], [1, 1], [0, 1]]]), 1).tolist()
    [[[0, 0, 0], [200, 200, 200], [255, 255, 255]]]

    Raises:
      ValueError: there are more planes than colours.
    """
    if planes.shape[-1] > len(PLANES):
        raise ValueError(f"{planes.shape[-1]} planes: expected at most {len(PLANES)}, one for each colour")
    set_planes = np.asarray(planes) != 0
    colours = np.array(PLANES, np.uint8)[set_planes.argmax(axis=-1)]
    cells = np.where(set_planes.any(axis=-1, keepdims=True), colours, np.uint8(0))
    return cells.repeat(pixels_per_cell, axis=0).repeat(pixels_per_cell, axis=1)
