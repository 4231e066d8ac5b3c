"""Faces and draws for the tests of the photometric half."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from hpe_core.augment.chains import Operation, operations
from hpe_core.augment.draw import DRAWS
from hpe_core.augment.table import Columns, Draws, Table
from hpe_core.geometry.crop import Image, canonical_crop
from hpe_core.render.scene import render_head
from hpe_core.spec.data import CropSpec

FACES = 6
SIZES = (32, 50, 64, 112)  # 50 is divided neither by JPEG's blocks nor by CLAHE's tiles, and is no multiple of 4
OPERATIONS = {operation.name: operation for operation in operations()}


@cache
def faces(size: int, count: int = FACES) -> Image:
    """Rendered heads, (count, size, size, 3); the last two are noise and one grey level."""
    heads = [render_head(5, i, size=128, heads_per_person=2) for i in range(count - 2)]
    cuts = [canonical_crop(head.image, head.box, CropSpec(size, 0)).pixels for head in heads]
    noise = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.stack([*cuts, noise, np.full((size, size, 3), 90, np.uint8)])


def tensor(size: int) -> Tensor:
    return torch.from_numpy(faces(size).copy())


def drawn(operation: Operation, count: int, size: int, seed: int) -> Columns:
    """Columns as float32 holds them, so that both sides count with the same numbers."""
    draw = DRAWS.get(operation.name)
    columns = draw(operation, count, size, np.random.default_rng(seed)) if draw else {}
    return {name: values.astype(np.float32).astype(float) for name, values in columns.items()}


def draws_of(name: str, columns: Columns, count: int = FACES) -> Draws:
    """Draws in which every face gets the operation."""
    named = {f"{name}.{column}": values for column, values in columns.items()} or {"none": np.zeros(count)}
    return Table(named, {name: np.ones(count, bool)}).rows(0, count)
