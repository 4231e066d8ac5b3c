"""What is worn: hats, scarves, hoods, collars, masks and glasses, as meshes that lie on the person's chart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpe_core.render.hair import Surface
from hpe_core.render.person import HeadStyle

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Solid:
    """points, normals, color (N, 3), gloss (N,), triangles (T, 3)."""

    points: Float
    normals: Float
    color: Float
    gloss: Float
    triangles: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Lenses:
    """Glasses' glass: points (N, 3), triangles, tint (linear) and how much of it covers what is behind."""

    points: Float
    triangles: NDArray[np.int32]
    tint: Float
    cover: float


def dress(style: HeadStyle, points: Float, surface: Surface) -> Solid | None:
    return None


def lenses(style: HeadStyle, points: Float) -> Lenses | None:
    return None
