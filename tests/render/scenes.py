"""What tests of rendered heads share: a marked head, a bald one, white light, and what to measure of a picture."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import cv2
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpe_core.render.draw import Scene, render_scene
from hpe_core.render.light import Light
from hpe_core.render.person.style import HeadStyle
from hpe_core.render.scene import RenderedHead

SIZE = 128
GREY = np.full((2 * SIZE, 2 * SIZE, 3), 0.25, np.float32)
# Lips green, scalp blue, all else grey: what the eye would follow. The scene's light is white.
MARKED = HeadStyle(
    skin=(0.6, 0.6, 0.6),
    lip=(0.03, 0.95, 0.03),
    hair_color=(0.03, 0.03, 0.95),
    cut="crop",
    hair_length=3.0,
    redness=0.0,
    shine=0.0,
    brow_density=0.0,
    cloth_color=(0.5, 0.5, 0.5),
    cloth_second=(0.5, 0.5, 0.5),
)
BALD = HeadStyle(cut="bald")
WHITE = Scene(light=Light(lamp=(0.0, -0.3, -0.954)))

poses = st.tuples(st.floats(-70, 70), st.floats(-99, 99), st.floats(-75, 75))


def picture(style: HeadStyle, scene: Scene) -> NDArray[np.float32]:
    """(SIZE, SIZE, 3) linear light."""
    return cv2.resize(render_scene(style, scene, SIZE, GREY).linear, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def mirrored_light(light: Light) -> Light:
    return replace(light, around=light.around[:, ::-1], lamp=(-light.lamp[0], *light.lamp[1:]))


def mirrored(scene: Scene) -> Scene:
    """The scene whose picture is this one's mirror image, if the person is symmetric."""
    (p, y, r), (bp, by, br), (across, down), (right, low) = scene.pose, scene.body_pose, scene.shift, scene.gaze
    other = {"Left": "Right", "Right": "Left"}
    return replace(
        scene,
        pose=(p, -y, -r),
        body_pose=(bp, -by, -br),
        shift=(-across, down),
        light=mirrored_light(scene.light),
        face=tuple((re.sub("Left$|Right$", lambda end: other[end[0]], name), weight) for name, weight in scene.face),
        gaze=(-right, low),
    )


def masks(image: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(lips, scalp) found by colour alone."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    return green > 1.6 * np.maximum(red, blue), blue > 1.6 * np.maximum(red, green)


def marked(pose: tuple[float, float, float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return masks(picture(MARKED, replace(WHITE, pose=pose)))


def centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, cols = np.nonzero(mask)
    return np.array([cols.mean() + 0.5, rows.mean() + 0.5])


def digest(head: RenderedHead) -> str:
    parts = (head.image, head.landmarks, head.visible, head.rotation)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()
