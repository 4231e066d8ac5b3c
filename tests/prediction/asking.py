"""What a test of `hpe predict` writes and reads."""

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from hpe_core.errors import UserError
from hpe_core.geometry.rotation import ANGLE_NAMES
from tests.archives import picture
from workflows import predict
from workflows.prediction.output import TABLE


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def table(out: Path = Path("poses")) -> list[dict[str, str]]:
    with open(out / TABLE, newline="") as stream:
        return list(csv.DictReader(stream))


def angles(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[float(row[name]) for name in ANGLE_NAMES] for row in rows])


def refusal(*words: str) -> str:
    """The one sentence of a command that is refused."""
    with pytest.raises(UserError) as caught:
        predict.main(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_video(path: Path, frames: int = 8, width: int = 64, height: int = 48, fps: float = 12.5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    for i in range(frames):
        writer.write(picture(i, height, width))
    writer.release()
    return path
