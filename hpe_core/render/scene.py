"""Rendered heads with exact pose: the embedded default data set, and the oracle of every convention test.

A person on MakeHuman's anatomy (`anatomy.py`, `person.py`) in front of a pinhole camera, drawn by OpenCV's z-buffer at
twice the size and shrunk. Labels are exact by construction: R is made from the drawn Euler triple, and the landmarks
are points of the mesh that is drawn. (pitch, yaw, roll) in degrees, R_cam = Rx(-pitch) Ry(yaw) Rz(roll), a head point X
lands at R X + t. All pixel coordinates follow `crop.Box`: pixel (i, j) covers [i, i+1] x [j, j+1].

The label is the triple AS DRAWN. For |yaw| <= 90 it is also the decode of R; beyond, R alone names another triple,
(p + 180, 180 - y, r + 180) up to whole turns, and the drawn one is kept, as 300W-LP's labels go beyond 90 too.

Rate, in pictures a second of one core, persons included, one OpenCV thread:

    OMP_NUM_THREADS=1 python -m hpe_core.render.scene

`docs/heads.jpg` is `contact_sheet(12)`.

Every draw comes from SeedSequence([seed, person]) or SeedSequence([seed, index, stream]): the same (seed, index) gives
the same pixels in any process, order or thread count, and the pose does not depend on the size.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.geometry.crop import Box
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.anatomy import EYES, MOUTH, SKIN, TEETH, TONGUE, anatomy
from hpe_core.render.background import draw_background
from hpe_core.render.camera import Camera, face_box
from hpe_core.render.figure import Figure, build_figure, eye_rows
from hpe_core.render.geometry import NECK_PIVOT, body_share, dot, landmark_normals, normals_of, spread, unit
from hpe_core.render.lens import develop, expose, occlude, tone
from hpe_core.render.light import Light, Shadow, directions, draw_light, open_share, open_to
from hpe_core.render.person import HeadStyle, draw_style
from hpe_core.render.raster import FAR, Frame, fronts
from hpe_core.render.wear import Solid

__all__ = ["HeadStyle", "RenderedHead", "Scene", "contact_sheet", "draw_style", "render_head", "render_scene"]

Pose = tuple[float, float, float]
Float = NDArray[np.floating]

SUPERSAMPLE = 2


@dataclass(frozen=True)
class PoseRange:
    """What poses are drawn, degrees. A share `wide` of the yaws is uniform over +-yaw, the rest normal; pitch and roll
    are normal; all is drawn anew until inside."""

    yaw: float = 99.0
    pitch: float = 75.0
    roll: float = 80.0
    wide: float = 0.5
    yaw_sd: float = 25.0
    pitch_sd: float = 20.0
    roll_sd: float = 18.0


USUAL = PoseRange()
WHOLE_CIRCLE = PoseRange(yaw=180.0, pitch=90.0, roll=180.0, wide=0.8, pitch_sd=28.0, roll_sd=30.0)


@dataclass(frozen=True)
class Scene:
    """Everything of one picture that is not the person. Lengths in mm; `fill` is the face box's longer side and `shift`
    its centre's offset, both as fractions of the frame. face: names of facial actions and their weights."""

    pose: Pose = (0.0, 0.0, 0.0)
    body_pose: Pose = (0.0, 0.0, 0.0)
    distance: float = 800.0
    offset: tuple[float, float] = (0.0, 0.0)
    fill: float = 0.58
    shift: tuple[float, float] = (0.0, 0.0)
    light: Light = Light()
    face: tuple[tuple[str, float], ...] = ()
    gaze: tuple[float, float] = (0.0, 0.0)  # degrees to image right and down

    def mirrored(self) -> Scene:
        """The scene whose picture is this one's mirror image, if the person is symmetric."""
        p, y, r = self.pose
        bp, by, br = self.body_pose
        other = {"Left": "Right", "Right": "Left"}

        def swapped(name: str) -> str:
            end = next((end for end in other if name.endswith(end)), None)
            return name.removesuffix(end) + other[end] if end else name

        return replace(
            self,
            pose=(p, -y, -r),
            body_pose=(bp, -by, -br),
            offset=(-self.offset[0], self.offset[1]),
            shift=(-self.shift[0], self.shift[1]),
            light=self.light.mirrored(),
            face=tuple((swapped(name), weight) for name, weight in self.face),
            gaze=(-self.gaze[0], self.gaze[1]),
        )


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


@dataclass(frozen=True, eq=False)
class Drawing:
    """A head over a background at SUPERSAMPLE times the size: linear (H, W, 3), its depth (H, W) mm, FAR where only
    the background is, and labels."""

    linear: Float
    depth: Float
    camera: Camera
    points_head: Float
    visible: NDArray[np.bool_]


# ---- drawing lots


def draw_pose(rng: np.random.Generator, within: PoseRange = USUAL) -> Pose:
    """By default half of the yaws near frontal (sd 25), half uniform over +-99, so that profiles are common; pitch sd
    20 in +-75, roll sd 18 in +-80."""
    while True:
        wide = rng.random() < within.wide
        yaw = rng.uniform(-within.yaw, within.yaw) if wide else rng.normal(0.0, within.yaw_sd)
        pitch, roll = rng.normal(0.0, within.pitch_sd), rng.normal(0.0, within.roll_sd)
        if abs(yaw) <= within.yaw and abs(pitch) <= within.pitch and abs(roll) <= within.roll:
            return float(pitch), float(yaw), float(roll)


def draw_face(rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """An expression, as weights of facial actions: half are at rest or smile a little."""
    out: dict[str, float] = {}

    def both(name: str, weight: float, uneven: float = 0.1) -> None:
        for end in ("Left", "Right"):
            out[name + end] = float(np.clip(weight * (1 + uneven * rng.normal()), 0, 1))

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
        return float(np.clip(share * angle + rng.normal(0, sd), angle - reach, angle + reach))

    body = (follow(pitch, 0.45, 5, 34), follow(yaw, 0.6, 14, 55), follow(roll, 0.55, 6, 28))
    size = rng.uniform(0.46, 0.68)
    slack = 0.5 - 0.6 * size  # the box moved by a tenth of its side stays in the frame
    gaze_x = float(np.clip(0.5 * yaw * rng.uniform(0, 1) + rng.normal(0, 8), -28, 28))
    gaze_y = float(np.clip(0.4 * pitch * rng.uniform(0, 1) + rng.normal(0, 4), -16, 16))
    return Scene(
        pose=pose,
        body_pose=body,
        distance=float(np.exp(rng.uniform(np.log(380), np.log(2800)))),
        offset=(float(rng.normal(0, 12)), float(rng.normal(0, 12))),
        fill=float(size),
        shift=(float(rng.uniform(-slack, slack)), float(rng.uniform(-slack, slack))),
        light=draw_light(rng),
        face=draw_face(rng),
        gaze=(gaze_x, gaze_y),
    )


# ---- posing the person


def _aim(points_head: Float, scene: Scene, size: int) -> Camera:
    """A camera whose picture of the landmarks has the wanted size and place: the focal length sets the size
    and the principal point the place, as in a crop of a larger photograph, so the head stays on the optical
    axis."""
    rotation = euler_to_matrix(scene.pose)
    t = np.array([scene.offset[0], scene.offset[1], scene.distance])
    unit = Camera(1.0, (0.0, 0.0), rotation, t)
    box = face_box(unit.project(points_head))
    focal = scene.fill * size / max(box.width, box.height)
    cx, cy = box.center
    center = (size * (0.5 + scene.shift[0]) - focal * cx, size * (0.5 + scene.shift[1]) - focal * cy)
    return Camera(focal, center, rotation, t)


def _express(figure: Figure, scene: Scene) -> Float:
    """The bare head (V, 3) with the scene's expression and gaze, head frame."""
    shared, points = anatomy(), figure.points.copy()
    weights = dict(scene.face)
    blinks = {name: weights.pop(name) for name in ("eyeBlinkLeft", "eyeBlinkRight") if name in weights}
    shared.add(points, {f"faceunits/{name}": weight for name, weight in weights.items()})
    open_before = _lid_gaps(points)
    closed = points.copy()
    shared.add(closed, {f"faceunits/{name}": 1.0 for name in blinks})
    for name, (before, after) in zip(("eyeBlinkRight", "eyeBlinkLeft"), zip(open_before, _lid_gaps(closed), strict=True), strict=True):
        if name in blinks:  # lids meet; they do not pass each other
            most = max(0.0, (before - 0.3) / max(before - after, 1e-3))
            shared.add(points, {f"faceunits/{name}": min(blinks[name] * min(most, 1.3), most)})
    right, down = np.radians(scene.gaze)
    turn = euler_to_matrix([-np.degrees(down), -np.degrees(right), 0.0]).astype(np.float32)
    for rows in eye_rows():
        middle = points[rows].mean(0)
        points[rows] = (points[rows] - middle) @ turn.T + middle
    return points


def _lid_gaps(points: Float) -> tuple[float, float]:
    """Millimetres between the lids of the right and of the left eye."""
    y = anatomy().landmarks_of(points)[:, 1]
    return float(min(y[41] - y[37], y[40] - y[38])), float(min(y[47] - y[43], y[46] - y[44]))


class _Posed:
    """Points and directions of the head frame, in the camera's: the head stiff, what lies lower with the body."""

    def __init__(self, camera: Camera, scene: Scene) -> None:
        self.camera = camera
        self.head = camera.rotation.astype(np.float32)
        self.shift = camera.translation.astype(np.float32)
        self.body = euler_to_matrix(scene.body_pose).astype(np.float32)
        pivot = NECK_PIVOT.astype(np.float32)
        self.body_shift = self.head @ pivot + self.shift - self.body @ pivot

    def __call__(self, points: Float, *vectors: Float) -> list[Float]:
        share = body_share(points).astype(np.float32)
        low = np.flatnonzero(share)
        out = [points @ self.head.T + self.shift, *(v @ self.head.T for v in vectors)]
        if len(low):
            w = share[low, None]
            out[0][low] += w * (points[low] @ self.body.T + self.body_shift - out[0][low])
            for v, turned in zip(vectors, out[1:], strict=True):
                turned[low] += w * (v[low] @ self.body.T - turned[low])
        return [x.astype(np.float32) for x in out]

    def project(self, points: Float) -> tuple[Float, Float]:
        """(pixels at SUPERSAMPLE (N, 2), pixels per mm (N,))."""
        scale = np.float32(self.camera.focal_px * SUPERSAMPLE) / np.maximum(points[:, 2], 40)
        centre = np.asarray(self.camera.center_px, np.float32) * SUPERSAMPLE
        return points[:, :2] * scale[:, None] + centre, scale


@lru_cache(maxsize=2)
def _drawn_triangles(mouth: bool) -> NDArray[np.int32]:
    """All but the lashes, with what is in the mouth or without."""
    shared = anatomy()
    parts = (SKIN, EYES, MOUTH, TEETH, TONGUE) if mouth else (SKIN, EYES)
    keep = np.isin(shared.part[shared.triangles], parts).all(1)
    return shared.triangles[keep].astype(np.int32)


def render_scene(style: HeadStyle, scene: Scene, size: int, background: Float) -> Drawing:
    """Draw one person in one scene over `background` (size * SUPERSAMPLE square, linear RGB, left untouched)."""
    figure, shared = build_figure(style), anatomy()
    bare = _express(figure, scene)
    points_head = shared.landmarks_of(bare)
    camera = _aim(points_head, scene, size)
    posed = _Posed(camera, scene)
    triangles = _drawn_triangles(any(name.startswith(("jaw", "mouth", "tongue")) for name, _ in scene.face))

    coated = bare + figure.normals * figure.coat[:, None]
    (points,) = posed(coated)
    normals = normals_of(points)
    light = scene.light
    shadow = Shadow(points, _drawn_triangles(False), np.asarray(light.lamp), soft=light.soft)
    diffuse, gleam = _light_skin(points, normals, shadow.lit(points), light, posed)

    side = size * SUPERSAMPLE
    xy, _ = posed.project(points)
    triangles = fronts(xy, triangles, side)
    chart, shade = Frame.empty(side), Frame.empty(side)
    chart.draw(xy, points[:, 2], triangles, np.concatenate([shared.uv, gleam[:, None]], 1))
    shade.draw(xy, points[:, 2], triangles, diffuse)
    seen = chart.depth < FAR / 2
    u, v = np.ascontiguousarray(chart.color[..., 0]), np.ascontiguousarray(chart.color[..., 1])
    surface = cv2.remap(figure.atlas, u - np.float32(0.5), v - np.float32(0.5), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    color = surface[..., :3] * shade.color + (surface[..., 3] * chart.color[..., 2])[..., None]
    linear = np.where(seen[..., None], color, background).astype(np.float32)
    frame = Frame(np.ascontiguousarray(linear), chart.depth)

    if figure.solid is not None:
        solid = figure.solid
        at, out = posed(solid.points, solid.normals)
        frame.draw(posed.project(at)[0], at[:, 2], solid.triangles, shade_solid(solid, at, out, light, shadow), "both")
    if figure.strands is not None:
        strands = figure.strands
        at, out = posed(strands.points.reshape(-1, 3), strands.out.reshape(-1, 3))
        xy, scale = posed.project(at)
        reached = shadow.lit(at + 6 * out)
        lit = strands.shade(at, out, light, reached)
        edges, depth, colors, ribbons = strands.ribbons(xy, at[:, 2], scale, lit, frame.depth)
        frame.draw(edges, depth, ribbons, colors, "both")
    if figure.lenses is not None:
        at, out = posed(figure.lenses.points, figure.lenses.normals)
        glass = Frame(np.zeros_like(frame.color), frame.depth.copy())
        glass.draw(posed.project(at)[0], at[:, 2], figure.lenses.triangles, 0.02 + mirrored(at, out, light, 40.0), "both")
        share = np.float32(0.12) * (glass.color > 0)
        frame.color[:] += share * (0.8 * glass.color - 0.7 * frame.color)
    visible = _visible(landmark_normals(normals), points_head, camera, frame.depth)
    return Drawing(frame.color, frame.depth, camera, points_head, visible)


def _light_skin(points: Float, normals: Float, shadow: Float, light: Light, posed: _Posed) -> tuple[Float, Float]:
    """What multiplies the albedo (V, 3), and the white highlight (V,)."""
    around = directions() @ posed.head.T
    sky = (open_to() * np.maximum(normals @ around.T, 0)) @ light.radiance(around)
    lamp = np.asarray(light.lamp, np.float32)
    lambert = normals @ lamp
    key = np.asarray(light.tint, np.float32) * np.float32(light.power)
    wrap = np.array([0.22, 0.08, 0.04], np.float32)
    direct = np.maximum((lambert[:, None] + wrap) / (1 + wrap), 0) * shadow[:, None]
    diffuse = sky + direct * key
    soft = spread(diffuse, 2)
    diffuse[:, 0] += 0.75 * (soft[:, 0] - diffuse[:, 0])
    diffuse[:, 1] += 0.35 * (soft[:, 1] - diffuse[:, 1])
    view = -unit(points)
    facing = np.clip(dot(normals, view), 0, 1)
    shine = np.clip(dot(normals, unit(lamp + view)), 0, 1)
    fresnel = 0.03 + 0.35 * (1 - facing) ** 4
    mirror = 2 * facing[:, None] * normals - view
    around_light = light.radiance(mirror, 12.0).mean(1) * open_share()
    gleam = fresnel * around_light + shadow * light.power * (0.10 * shine**14 + 0.10 * shine**50) * (lambert > 0)
    eyes = anatomy().part == EYES
    gleam[eyes] = 0.02 * around_light[eyes] + 0.5 * shadow[eyes] * light.power * shine[eyes] ** 300
    return diffuse.astype(np.float32), gleam.astype(np.float32)


def mirrored(points: Float, normals: Float, light: Light, gloss: float) -> Float:
    """(N, 3) what a mirror shows at points of the camera frame whose normals may point either way."""
    view = -unit(points)
    facing = dot(normals, view)[:, None]
    bounced = (2 * facing * normals - view).astype(np.float32)
    lamp = np.exp(np.float32(gloss * 4) * (bounced @ np.asarray(light.lamp, np.float32) - 1))[:, None]
    return light.radiance(bounced, gloss) + lamp * np.float32(4 * light.power)


def shade_solid(solid: Solid, at: Float, out: Float, light: Light, shadow: Shadow) -> Float:
    """(N, 3) light off what is worn, camera frame; the head casts its shadow on it."""
    facing = -dot(out, unit(at))[:, None]
    out = np.where(facing < 0, -out, out)
    lamp = np.asarray(light.lamp, np.float32)
    direct = np.clip((out @ lamp + 0.1) / 1.1, 0, 1) * shadow.lit(at + 4 * out)
    color = solid.color * (0.85 * light.radiance(out, 1.5) + direct[:, None] * np.asarray(light.tint, np.float32) * np.float32(light.power))
    shiny = solid.gloss > 0
    if shiny.any():
        fresnel = 0.03 + 0.3 * (1 - np.abs(facing[shiny])) ** 4
        color[shiny] += fresnel * solid.gloss[shiny, None] * mirrored(at[shiny], out[shiny], light, 30.0)
    return color.astype(np.float32)


def _visible(normal: Float, points_head: Float, camera: Camera, depth: Float) -> NDArray[np.bool_]:
    """Landmarks (68,) whose surface (normals (68, 3), camera frame) faces the camera and that lie at the z-buffer's
    depth, give or take the slope of the skin over a pixel."""
    cam = camera.to_camera(points_head)
    ray = cam / np.linalg.norm(cam, axis=1, keepdims=True)
    cosine = -(normal * ray).sum(1)
    pixel = np.floor(camera.project_camera(cam) * SUPERSAMPLE).astype(int)
    inside = (pixel >= 0).all(1) & (pixel < depth.shape[0]).all(1)
    at_pixel = np.clip(pixel, 0, depth.shape[0] - 1)
    # Where the pixel shows the background the landmark lies within a pixel of the silhouette: in front of nothing.
    near = depth[at_pixel[:, 1], at_pixel[:, 0]]
    millimetres = cam[:, 2] / (camera.focal_px * SUPERSAMPLE)
    slope = millimetres / np.maximum(cosine, 0.2)
    return (cosine > 0.05) & inside & (cam[:, 2] < near + 4.0 + slope)


@lru_cache(maxsize=1)
def _keep_memory() -> None:
    """A picture is a hundred temporaries of about a megabyte, which glibc would give back to the kernel and
    fault in again each time: a fifth of the run time. Freeing one large block lifts its thresholds (to 32
    MB, which is its own limit), for good; the block is never touched, so it costs nothing."""
    np.empty(32 * 2**20 - 2**16, np.uint8)


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
    _keep_memory()
    person = index // heads_per_person

    def stream(k: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([seed, index, k]))

    style = draw_style(seed, person)
    drawn = draw_pose(stream(0), poses)
    used: Pose = drawn if pose is None else (float(pose[0]), float(pose[1]), float(pose[2]))
    scene = draw_scene(stream(1), used)
    side = size * SUPERSAMPLE
    behind = np.full((side, side, 3), 0.25, np.float32) if plain else draw_background(stream(2), side)
    drawing = render_scene(style, scene, size, behind)
    landmarks = drawing.camera.project(drawing.points_head)
    box = face_box(landmarks)
    visible, light = drawing.visible, drawing.linear
    if plain:
        small = cv2.resize(light, (size, size), interpolation=cv2.INTER_AREA)
        image = np.clip(tone(expose(small, box)) * 255 + 0.5, 0, 255).astype(np.uint8)
    else:
        front = stream(3)
        if front.random() < 0.15:
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


def contact_sheet(
    seed: int = 0,
    *,
    rows: int = 8,
    cols: int = 8,
    size: int = 144,
    first: int = 0,
    stride: int = 9,
    plain: bool = False,
) -> NDArray[np.uint8]:
    """rows x cols heads side by side, (rows * size, cols * size, 3) RGB; `stride` steps over a person's
    pictures."""
    heads = [render_head(seed, first + k * stride, size=size, plain=plain).image for k in range(rows * cols)]
    return np.concatenate([np.concatenate(heads[r * cols : (r + 1) * cols], 1) for r in range(rows)], 0)


def _measure(seconds: float = 6.0, size: int = 128) -> float:
    """Pictures a second of CPU time on one thread, persons and all."""
    cv2.setNumThreads(1)
    render_head(0, 0, size=size)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        count += 1
        render_head(1, count, size=size)
    return count / (time.process_time() - start)


if __name__ == "__main__":
    print(f"{_measure():.1f} pictures a second and core at 128 px")
