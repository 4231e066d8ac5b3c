"""What is behind a head."""
from __future__ import annotations
import numpy as np


def draw_background(rng, side, light=None):
    return np.full((side, side, 3), 0.2, np.float32)
