"""How our head's zero differs from that of AFLW2000 and 300W-LP, asked of their landmarks:

    python -m hpe_core.render.zero FOLDER_OF_AFLW2000

Every face's `pt3d_68` is turned back by its own `Pose_Para` and scaled to one size. The mean of them is a head that
looks straight ahead as these archives mean it. The mean of our own persons' landmarks, with their expressions, is
fitted to it by a similarity, and the fit's pitch is printed: what `anatomy.ZERO_PITCH` lacks. No network is asked.

docs/champion.md says what it printed, and how the constant was chosen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from hpe_core.geometry.rotation import euler_to_matrix, matrix_to_euler
from hpe_core.render.person.anatomy import SIXTEEN, anatomy
from hpe_core.render.person.style import draw_style
from hpe_core.render.scene import draw_face


def archive_head(folder: Path) -> NDArray[np.float64]:
    """(68, 3) the mean un-turned landmarks of the archive's faces within 99 degrees, head frame, unit size."""
    from scipy.io import loadmat

    heads = []
    for file in sorted(folder.glob("*.mat")):
        data = loadmat(file, variable_names=["Pose_Para", "pt3d_68"])
        pose = np.degrees(data["Pose_Para"][0, :3].astype(np.float64))
        if np.abs(pose).max() <= 99:
            points = data["pt3d_68"].T.astype(np.float64) * [1, 1, -1]  # z grows towards the viewer there
            head = (points - points.mean(0)) @ euler_to_matrix(pose)
            heads.append(head / np.sqrt((head**2).sum()))
    print(f"{len(heads)} faces")
    return np.mean(heads, axis=0)


def our_head(persons: int = 400) -> NDArray[np.float64]:
    """(68, 3) the same of our persons at pose (0, 0, 0)."""
    shared, heads = anatomy(), []
    for k in range(persons):
        points = shared.shaped(dict(draw_style(0, k).shapes))
        face = draw_face(np.random.default_rng(k))
        shared.add(points, {f"faceunits/{name}": weight for name, weight in face})
        marks = shared.landmarks_of(points).astype(np.float64)
        head = marks - marks.mean(0)
        heads.append(head / np.sqrt((head**2).sum()))
    return np.mean(heads, axis=0)


def fit(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The rotation (3, 3) that turns our points onto theirs best, and the residual as a share of the size."""
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    rotation = Rotation.align_vectors(b, a)[0].as_matrix()
    turned = a @ rotation.T
    left = b - (b * turned).sum() / (turned**2).sum() * turned
    return rotation, float(np.sqrt((left**2).sum() / (b**2).sum()))


if __name__ == "__main__":
    theirs, ours = archive_head(Path(sys.argv[1])), our_head()
    for name, points in {"all 68": np.arange(68), "sixteen": SIXTEEN}.items():
        rotation, left = fit(ours[points], theirs[points])
        pitch, yaw, roll = matrix_to_euler(rotation)
        print(f"{name:16} pitch {pitch:+.2f}, yaw {yaw:+.2f}, roll {roll:+.2f}, residual {left:.3f}")
