"""Tiny archives in the real formats, for tests that run without the real ones."""

from pathlib import Path

import cv2
import numpy as np
import scipy.io

from hpe_core.rotation import euler_to_matrix

Pose = tuple[float, float, float]


def picture(seed: int, height: int = 120, width: int = 120) -> np.ndarray:
    """(H, W, 3) uint8: smooth colours with some texture, so that a JPEG of it has something to lose."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def write_aflw2000(root: Path, name: str, pose: Pose = (5.0, 20.0, -3.0), *, seed: int = 0, **change: object) -> Path:
    """One image with its .mat; `change` replaces variables (None leaves one out). Returns the image's path."""
    root.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / f"{name}.jpg"), picture(seed))
    head = np.random.default_rng(7).uniform(-1, 1, (3, 68)) * np.array([[30.0], [38.0], [20.0]])
    points = euler_to_matrix(pose) @ head + np.array([[60.0], [60.0], [0.0]])
    variables: dict[str, object] = {
        "Pose_Para": np.array([[*np.radians(pose), 1.0, 2.0, 3.0, 0.001]], np.float32),
        "pt3d_68": points.astype(np.float32),
        "pt2d": -np.ones((2, 21)),
    }
    variables |= change
    scipy.io.savemat(root / f"{name}.mat", {key: value for key, value in variables.items() if value is not None})
    return root / f"{name}.jpg"


def write_pointing04(root: Path, person: int, number: int, tilt: int, pan: int, text: str = "") -> Path:
    """One image with its text; returns the image's path."""
    name = f"person{person:02d}1{number:02d}{tilt:+d}{pan:+d}"
    folder = root / f"Person{person:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{name}.jpg"), picture(number, 96, 128))
    (folder / f"{name}.txt").write_text(text or f"{name}.jpg\n\nFace\n64\n48\n40\n50\n")
    return folder / f"{name}.jpg"
