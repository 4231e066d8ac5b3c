"""Rendered heads with exact pose: the embedded default data set, and the oracle of every convention test.

A person on MakeHuman's anatomy (`person/`) in front of a pinhole camera, drawn by OpenCV's z-buffer at twice the size
and shrunk. Labels are exact by construction: R is made from the drawn Euler triple, and the landmarks are points of the
mesh that is drawn. (pitch, yaw, roll) in degrees, R_cam = Rx(-pitch) Ry(yaw) Rz(roll), a head point X lands at R X + t.
All pixel coordinates follow `crop.Box`: pixel (i, j) covers [i, i+1] x [j, j+1].

The label is the triple AS DRAWN. For |yaw| <= 90 it is also the decode of R; beyond, R alone names another triple,
(p + 180, 180 - y, r + 180) up to whole turns, and the drawn one is kept, as 300W-LP's labels go beyond 90 too.

`docs/heads.jpg` is 8 x 8 of `render_head(12, 9 * k, size=144)`.

Every draw comes from SeedSequence([seed, person]) or SeedSequence([seed, index, stream]): the same (seed, index) gives
the same pixels in any process, order or thread count, and the pose does not depend on the size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.geometry.crop import Box
from hpe_core.geometry.rotation import turn
from hpe_core.render.background import draw_background
from hpe_core.render.draw import SUPERSAMPLE, Pose, Scene, render_scene
from hpe_core.render.lens import develop, expose, occlude, tone
from hpe_core.render.light import draw_light
from hpe_core.render.person.style import draw_style
from hpe_core.render.raster import Camera
from hpe_core.system.memory import keep_freed_memory

Float = NDArray[np.floating]


@dataclass(frozen=True)
class PoseRange:
    """What poses are drawn, degrees: a head nods (pitch), looks aside (yaw), and its picture is turned in the plane.
    A share `wide` of the yaws is uniform over +-yaw, the rest normal; pitch and turn are normal. A triple
    that the turn takes beyond the three limits is drawn anew, and a turned profile shows less yaw, so few yaws of 85 to
    95 are left: one in seventy.

    Near profile a turn moves pitch and roll far and together: in photographs their correlation is 0.94 beyond 60
    degrees of yaw. Pitch and roll that are drawn apart are poses that no camera sees (docs/champion.md).
    """

    yaw: float = 99.0
    pitch: float = 99.0
    roll: float = 99.0
    wide: float = 0.6
    yaw_sd: float = 25.0
    pitch_sd: float = 18.0
    turn_sd: float = 15.0


USUAL = PoseRange()
WHOLE_CIRCLE = PoseRange(yaw=180.0, pitch=90.0, roll=180.0, wide=0.8, pitch_sd=28.0, turn_sd=30.0)


@dataclass(frozen=True, eq=False)
class RenderedHead:
    """image: (size, size, 3) uint8 RGB. box: the face box, pixels. landmarks: (68, 2) pixels, iBUG order.
    visible: (68,) bool, neither the head nor an occluder is in front. pose: (pitch, yaw, roll) degrees as
    drawn. rotation: (3, 3) R_cam. camera: projects head-frame points. points_head: (68, 3) mm, the
    landmarks in the head frame, expression included. group: the person. sample_id: the picture."""

    image: NDArray[np.uint8]
    box: Box
    landmarks: Float
    visible: NDArray[np.bool_]
    pose: Pose
    rotation: NDArray[np.float64]
    camera: Camera
    group: str
    sample_id: str
    points_head: Float


# ---- drawing lots


def draw_pose(rng: np.random.Generator, within: PoseRange = USUAL) -> Pose:
    """By default, before the turn, two fifths of the yaws near frontal (sd 25) and the rest uniform over +-99; pitch sd
    18. Then the picture is turned by sd 15."""
    while True:
        wide = rng.random() < within.wide
        yaw = rng.uniform(-within.yaw, within.yaw) if wide else rng.normal(0.0, within.yaw_sd)
        pitch, by = rng.normal(0.0, within.pitch_sd), rng.normal(0.0, within.turn_sd)
        pitch, yaw, roll = map(float, turn((pitch, yaw, 0.0), by))
        if abs(yaw) <= within.yaw and abs(pitch) <= within.pitch and abs(roll) <= within.roll:
            return pitch, yaw, roll


def draw_face(rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """An expression, as weights of facial actions: half are at rest or smile a little."""
    out: dict[str, float] = {}

    def both(name: str, weight: float, uneven: float = 0.1) -> None:
        for end in ("Left", "Right"):
            out[name + end] = min(max(weight * (1 + uneven * rng.normal()), 0.0), 1.0)

    kind = str(rng.choice(["rest", "smile", "laugh", "talk", "surprise", "frown", "pout", "odd"],
                          p=[0.30, 0.28, 0.20, 0.10, 0.03, 0.04, 0.02, 0.03]))  # fmt: skip
    amount = float(rng.uniform(0.3, 1))
    if kind == "smile":
        both("mouthSmile", 0.7 * amount)
        both("cheekSquint", 0.4 * amount)
        both("mouthUpperUp", 0.5 * amount * rng.random())
        both("mouthLowerDown", 0.5 * amount * rng.random())
    elif kind == "laugh":
        both("mouthSmile", 0.6 + 0.4 * amount)
        both("cheekSquint", 0.8 * amount)
        both("mouthUpperUp", 0.3 + 0.4 * amount)
        both("mouthLowerDown", 0.3 + 0.4 * amount)
        both("eyeSquint", 0.5 * amount)
        out["jawOpen"] = 0.4 * amount * float(rng.random() ** 2)
    elif kind == "talk":
        out["jawOpen"] = 0.5 * amount * float(rng.random())
        out[str(rng.choice(["mouthFunnel", "mouthPucker", "mouthShrugUpper", "mouthRollLower"]))] = 0.6 * amount
        both("mouthLowerDown", 0.4 * amount * rng.random())
    elif kind == "surprise":
        out["jawOpen"], out["browInnerUp"] = 0.7 * amount, 0.8 * amount
        both("browOuterUp", 0.8 * amount)
        both("eyeWide", 0.7 * amount)
    elif kind == "frown":
        both("browDown", amount)
        both("mouthFrown", 0.6 * amount)
        both("noseSneer", 0.4 * amount * rng.random())
    elif kind == "pout":
        out["mouthPucker"], out["cheekPuff"] = 0.8 * amount, 0.5 * amount * float(rng.random())
    elif kind == "odd":
        out[str(rng.choice(["mouthLeft", "mouthRight", "jawLeft", "jawRight", "mouthRollUpper", "tongueOut"]))] = amount
        out["jawOpen"] = 0.8 * float(rng.random())
    both("browOuterUp", out.get("browOuterUpLeft", 0) + max(0, rng.normal(-0.05, 0.2)))
    out["browInnerUp"] = float(out.get("browInnerUp", 0) + max(0, rng.normal(-0.05, 0.2)))
    both("browDown", out.get("browDownLeft", 0) + max(0, rng.normal(-0.05, 0.2)))
    lids = float(np.clip(rng.normal(0.12, 0.12), 0, 1)) if rng.random() > 0.05 else float(rng.uniform(0.5, 1))
    both("eyeBlink", lids, 0.03)
    return tuple((name, round(weight, 4)) for name, weight in out.items() if weight > 0.01)


def draw_scene(rng: np.random.Generator, pose: Pose) -> Scene:
    """Body, camera, light and expression round a pose. The body follows the head part of the way, within what a neck
    can do, and the eyes tend back to the camera."""
    pitch, yaw, roll = pose

    def follow(angle: float, share: float, sd: float, reach: float) -> float:
        return min(max(share * angle + rng.normal(0, sd), angle - reach), angle + reach)

    body = (follow(pitch, 0.45, 5, 34), follow(yaw, 0.6, 14, 55), follow(roll, 0.55, 6, 28))
    size = rng.uniform(0.46, 0.68)
    slack = 0.5 - 0.6 * size  # the box moved by a tenth of its side stays in the frame
    gaze_x = min(max(0.5 * yaw * rng.uniform(0, 1) + rng.normal(0, 8), -28.0), 28.0)
    gaze_y = min(max(0.4 * pitch * rng.uniform(0, 1) + rng.normal(0, 4), -16.0), 16.0)
    return Scene(
        pose=pose,
        body_pose=body,
        distance=float(np.exp(rng.uniform(np.log(380), np.log(2800)))),
        fill=float(size),
        shift=(float(rng.uniform(-slack, slack)), float(rng.uniform(-slack, slack))),
        light=draw_light(rng),
        face=draw_face(rng),
        gaze=(gaze_x, gaze_y),
    )


def render_head(
    seed: int,
    index: int,
    *,
    size: int = 192,
    heads_per_person: int = 8,
    pose: Pose | None = None,
    plain: bool = False,
    poses: PoseRange = USUAL,
) -> RenderedHead:
    """Picture `index` of the data set `seed`.

    size: side of the square picture, pixels. heads_per_person: pictures that share a person. pose: (pitch,
    yaw, roll) degrees instead of the drawn one, all else equal. plain: nothing in front, flat grey behind,
    no blur, noise or colour cast. poses: what is drawn. Raises ValueError for a negative seed or index, or a size
    below 32.
    """
    if seed < 0 or index < 0 or size < 32 or heads_per_person < 1:
        raise ValueError(
            f"seed and index must be >= 0, size >= 32, heads_per_person >= 1: "
            f"{seed=} {index=} {size=} {heads_per_person=}"
        )
    keep_freed_memory()  # a picture is a hundred temporaries of about a megabyte: a fifth of the run time
    person = index // heads_per_person

    def stream(k: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([seed, index, k]))

    style = draw_style(seed, person)
    drawn = draw_pose(stream(0), poses)
    used: Pose = drawn if pose is None else (float(pose[0]), float(pose[1]), float(pose[2]))
    scene = draw_scene(stream(1), used)
    side = size * SUPERSAMPLE
    if plain:
        behind = np.full((side, side, 3), 0.25, np.float32)
    else:
        behind = draw_background(stream(2), side) * np.float32(scene.light.behind)
        scene = replace(scene, light=scene.light.before(behind))
    drawing = render_scene(style, scene, size, behind)
    landmarks = drawing.camera.project(drawing.points_head)
    box = Box.of_face(landmarks)
    visible, light = drawing.visible, drawing.linear
    if plain:
        small = cv2.resize(light, (size, size), interpolation=cv2.INTER_AREA)
        image = np.clip(tone(expose(small, box)) * 255 + 0.5, 0, 255).astype(np.uint8)
    else:
        front = stream(3)
        if front.random() < 0.2:
            k = SUPERSAMPLE
            hidden = occlude(front, light, Box(box.x1 * k, box.y1 * k, box.x2 * k, box.y2 * k), style)
            at = np.clip((landmarks * k).astype(int), 0, side - 1)
            visible = visible & ~hidden[at[:, 1], at[:, 0]]
        image = develop(stream(4), light, box, size)
    return RenderedHead(
        image=image,
        box=box,
        landmarks=landmarks.astype(np.float32),
        visible=visible,
        pose=used,
        rotation=drawing.camera.rotation,
        camera=drawing.camera,
        group=f"person-{seed}-{person:05d}",
        sample_id=f"head-{seed}-{index:06d}",
        points_head=drawing.points_head,
    )
