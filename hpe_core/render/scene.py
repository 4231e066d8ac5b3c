"""Rendered heads with exact pose: the embedded default data set, and the oracle of every convention test.

A parametric head (`headmesh.py`) in front of a pinhole camera, drawn with a numpy z-buffer (`raster.py`) at
twice the size and shrunk. Labels are exact by construction: R is made from the drawn Euler triple, and the
landmarks are points of the mesh that is drawn. (pitch, yaw, roll) in degrees, R_cam = Rx(-pitch) Ry(yaw)
Rz(roll), a head point X lands at R X + t. All pixel coordinates follow `crop.Box`: pixel (i, j) covers [i,
i+1] x [j, j+1].

The label is the triple AS DRAWN. For |yaw| <= 90 it is also the decode of R; beyond, R alone names another
triple, (p + 180, 180 - y, r + 180) up to whole turns, and the drawn one is kept, as 300W-LP's labels go
beyond 90 too.

Rate: 39.7 to 45.6 pictures a second of one core at 192 px, persons included (2026-11-20, eight runs on two cores
under a load of 6; one OpenCV thread; 35 before `_keep_memory`):

    OMP_NUM_THREADS=1 python -m hpe_core.render.scene

`docs/heads.jpg` is `contact_sheet(12)`.

Every draw comes from SeedSequence([seed, person]) or SeedSequence([seed, index, stream]): the same (seed,
index) gives the same pixels in any process, order or thread count, and the pose does not depend on the size.
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
from hpe_core.render.headmesh import (
    TEX_COL,
    TEX_ROW,
    HeadModel,
    HeadStyle,
    build_head,
    draw_style,
    generic,
    grid_normals,
    smoothstep,
)
from hpe_core.render.raster import Camera, Fragments, rasterise

__all__ = ["HeadStyle", "RenderedHead", "Scene", "contact_sheet", "draw_style", "render_head", "render_scene"]

Pose = tuple[float, float, float]
Float = NDArray[np.floating]

SUPERSAMPLE = 2
YAW_LIMIT, PITCH_LIMIT, ROLL_LIMIT = 99.0, 75.0, 80.0
NECK_PIVOT = np.array([0.0, 118.0, 22.0])


@dataclass(frozen=True)
class Scene:
    """Everything of one picture that is not the person. Directions are in the camera frame; lengths in mm;
    `fill` is the face box's longer side and `shift` its centre's offset, both as fractions of the frame."""

    pose: Pose = (0.0, 0.0, 0.0)
    body_pose: Pose = (0.0, 0.0, 0.0)
    distance: float = 800.0
    offset: tuple[float, float] = (0.0, 0.0)
    fill: float = 0.58
    shift: tuple[float, float] = (0.0, 0.0)
    light: tuple[float, float, float] = (0.0, -0.5, -0.87)
    light_color: tuple[float, float, float] = (1.0, 0.97, 0.92)
    light_power: float = 0.75
    ambient: float = 0.42
    ambient_color: tuple[float, float, float] = (0.95, 0.98, 1.0)
    rim: float = 0.0
    jaw: float = 0.0
    smile: float = 0.0
    brow_raise: float = 0.0
    eye_open: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)

    def mirrored(self) -> Scene:
        """The scene whose picture is this one's mirror image, if the person is symmetric."""
        p, y, r = self.pose
        bp, by, br = self.body_pose
        return replace(
            self,
            pose=(p, -y, -r),
            body_pose=(bp, -by, -br),
            rim=-self.rim,
            offset=(-self.offset[0], self.offset[1]),
            shift=(-self.shift[0], self.shift[1]),
            light=(-self.light[0], self.light[1], self.light[2]),
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


# ---- drawing lots


def draw_pose(rng: np.random.Generator) -> Pose:
    """Yaw: half near frontal (sd 25), half uniform over +-99, so that profiles are common. Pitch sd 20 in
    +-75, roll sd 18 in +-80, redrawn until inside."""

    def inside(draw: float, limit: float) -> bool:
        return abs(draw) <= limit

    while True:
        wide = rng.random() < 0.5
        yaw = rng.uniform(-YAW_LIMIT, YAW_LIMIT) if wide else rng.normal(0.0, 25.0)
        pitch, roll = rng.normal(0.0, 20.0), rng.normal(0.0, 18.0)
        if inside(yaw, YAW_LIMIT) and inside(pitch, PITCH_LIMIT) and inside(roll, ROLL_LIMIT):
            return float(pitch), float(yaw), float(roll)


def draw_scene(rng: np.random.Generator, pose: Pose) -> Scene:
    """Body, camera, light and expression round a pose. The body follows the head part of the way, within
    what a neck can do, and the eyes tend back to the camera."""
    pitch, yaw, roll = pose

    def follow(angle: float, share: float, sd: float, reach: float) -> float:
        return float(np.clip(share * angle + rng.normal(0, sd), angle - reach, angle + reach))

    body = (follow(pitch, 0.35, 5, 38), follow(yaw, 0.55, 14, 62), follow(roll, 0.45, 6, 32))
    around, above = rng.uniform(-1.9, 1.9), rng.normal(0.35, 0.45)
    light = (
        float(np.sin(around) * np.cos(above)),
        float(-np.sin(above)),
        float(-np.abs(np.cos(around)) * np.cos(above) - 0.15),
    )
    warm = rng.normal(0, 0.07)
    power = rng.uniform(0.45, 1.25)
    fill = rng.uniform(0.46, 0.68)
    slack = 0.5 - 0.6 * fill  # the box moved by a tenth of its side stays in the frame
    smile = max(0.0, rng.normal(0.15, 0.45))
    gx = float(np.clip(0.06 * yaw * rng.uniform(0, 1) + rng.normal(0, 1.6), -4.5, 4.5))
    gy = float(np.clip(0.05 * pitch * rng.uniform(0, 1) + rng.normal(0, 0.7), -2.2, 2.2))
    return Scene(
        pose=pose,
        body_pose=body,
        distance=float(np.exp(rng.uniform(np.log(480), np.log(1700)))),
        offset=(float(rng.normal(0, 12)), float(rng.normal(0, 12))),
        fill=float(fill),
        shift=(float(rng.uniform(-slack, slack)), float(rng.uniform(-slack, slack))),
        light=light,
        light_color=(float(1 + warm), 1.0, float(1 - warm)),
        light_power=float(power),
        ambient=float(rng.uniform(0.26, 0.68)),
        ambient_color=(float(1 - warm), 1.0, float(1 + warm)),
        rim=float(rng.choice([0.0, 0.0, -1.0, 1.0]) * rng.uniform(0.1, 0.5)),
        jaw=float(max(0.0, rng.normal(-0.03, 0.09))),
        smile=float(min(smile, 1.2)),
        brow_raise=float(rng.normal(0, 0.4)),
        eye_open=float(np.clip(rng.normal(0.88, 0.18), 0.12, 1.1)),
        gaze=(gx, gy),
    )


# ---- posing the person


@dataclass(frozen=True, eq=False)
class _Expression:
    """Weights on the head grid of what a face can do, and the windows of the texture that move."""

    jaw: Float
    corner: Float
    cheek: Float
    brow: Float
    eyes: tuple[tuple[slice, slice], tuple[slice, slice]]
    mouth: tuple[slice, slice]


@lru_cache(maxsize=1)
def _expression() -> _Expression:
    g = generic()
    x, y, z = g.grid[..., 0], g.grid[..., 1], g.grid[..., 2]
    ax = np.abs(x)
    wide = np.interp(ax, [17, 22, 27, 45, 70], [0.3, 2.0, 10, 24, 32])
    # The rings tilt, so the line between the lips is a height per column, not one height.
    seam = (y[g.lip_row] + y[g.lip_row + 1]) / 2
    jaw = np.clip((y - seam + wide) / (2 * wide), 0, 1)
    jaw = jaw * jaw * (3 - 2 * jaw) * smoothstep(12, -35, z) * smoothstep(132, 117, y)
    front = smoothstep(-10, -40, z)
    corner = np.exp(-(((ax - 25) / 13) ** 2) - ((y - 73) / 10) ** 2) * front
    cheek = np.exp(-(((ax - 42) / 16) ** 2) - ((y - 40) / 14) ** 2) * front
    brow = np.exp(-(((ax - 30) / 26) ** 2) - ((y + 20) / 9) ** 2) * front

    def window(x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        t = g.texel
        hit = (t[..., 0] > x0) & (t[..., 0] < x1) & (t[..., 1] > y0) & (t[..., 1] < y1) & (t[..., 2] < -30)
        rows, cols = np.flatnonzero(hit.any(1)), np.flatnonzero(hit.any(0))
        return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)

    mouth = window(-27, 27, 60, 90)
    strip = slice(g.lip_row * TEX_ROW, (g.lip_row + 1) * TEX_ROW + 1)
    return _Expression(
        jaw.astype(np.float32),
        corner.astype(np.float32),
        cheek.astype(np.float32),
        brow.astype(np.float32),
        (window(-52, -11, -13, 12), window(11, 52, -13, 12)),
        (strip, mouth[1]),
    )


def _express(model: HeadModel, scene: Scene) -> Float:
    """The person's skin with the scene's expression, (R, C, 3) mm in the head frame."""
    e = _expression()
    out = model.skin.copy()
    sign = np.sign(generic().grid[..., 0])
    # The jaw turns about the condyles, 15 mm under the eye line, a little behind the origin.
    y, z = out[..., 1] - 15, out[..., 2] - 5
    angle = scene.jaw * e.jaw
    out[..., 1] += -np.sin(angle) * z + (np.cos(angle) - 1) * y
    out[..., 2] += np.sin(angle) * y + (np.cos(angle) - 1) * z
    out[..., 0] += scene.smile * 4.0 * sign * e.corner
    out[..., 1] -= scene.smile * (4.5 * e.corner + 2.0 * e.cheek) + scene.brow_raise * 3.0 * e.brow
    out[..., 2] += scene.smile * (2.0 * e.corner - 2.5 * e.cheek)
    return out


def _paint_moving(model: HeadModel, scene: Scene) -> Float:
    """The atlas with eyes and mouth as the scene has them."""
    g, e, s = generic(), _expression(), model.style
    atlas = model.atlas.copy()
    iris_color = np.asarray(s.iris, np.float32) ** 2
    skin = np.asarray(s.skin, np.float32) ** 2
    for side, window in zip((-1.0, 1.0), e.eyes, strict=True):
        p = g.texel[window]
        dx, y = p[..., 0] - side * 31.5, p[..., 1]
        u = np.clip(side * dx / 15.4, -1, 1)
        arch = np.maximum(1 - np.abs(u) ** 2.2, 0) ** 0.8
        slant = -0.9 * u + 0.6
        upper = slant - (5.8 + 1.1 * s.eye_open) * scene.eye_open * arch + 1.8 * (1 - scene.eye_open) * arch
        lower = slant + 4.2 * arch
        lid = smoothstep(-0.5, 0.5, y - upper) * smoothstep(0.5, -0.5, y - lower) * (np.abs(dx) < 15.6)
        d = np.hypot(dx - scene.gaze[0], y + 0.3 - scene.gaze[1])
        shade = 0.45 + 0.55 * smoothstep(0.0, 3.2, y - upper)
        ball = np.array([0.44, 0.41, 0.39], np.float32) * (shade * (1 - 0.35 * np.abs(u) ** 3))[..., None]
        ring = iris_color * (0.55 + 0.9 * smoothstep(5.6, 3.0, d))[..., None] * shade[..., None]
        ball += (ring - ball) * smoothstep(6.4, 5.7, d)[..., None]
        ball *= 1 - 0.96 * smoothstep(2.8, 2.1, d)[..., None]
        glint = np.hypot(dx - scene.gaze[0] - 2.2 * scene.light[0], y + 1.6 - scene.gaze[1])
        ball += 0.85 * smoothstep(1.5, 0.7, glint)[..., None]
        lash = 0.72 * np.exp(-(((y - upper + 0.3) / 1.0) ** 2)) + 0.40 * np.exp(-(((y - lower) / 0.8) ** 2))
        patch = atlas[window]
        patch += (ball.astype(np.float32) - patch) * lid[..., None].astype(np.float32)
        patch *= (1 - np.clip(lash * (np.abs(u) < 0.999), 0, 0.9))[..., None].astype(np.float32)
    p = g.texel[e.mouth]
    depth = np.linspace(0, 1, p.shape[0])[:, None]
    inside = smoothstep(26, 22, np.abs(p[..., 0]))
    gap = np.array([0.05, 0.012, 0.012], np.float32) * (1 if scene.jaw > 0.03 else 3)
    cave = gap * (1.2 - depth)[..., None] * np.ones((1, p.shape[1], 1), np.float32)
    if scene.jaw > 0.03:
        teeth = smoothstep(0.5, 0.38, depth) * smoothstep(17, 8, np.abs(p[..., 0])) * min(1.0, scene.jaw * 12)
        cave += (np.array([0.62, 0.57, 0.48], np.float32) - cave) * teeth[..., None]
    cave = np.minimum(cave, 0.9 * skin.max() + 0.2)
    patch = atlas[e.mouth]
    patch += (cave.astype(np.float32) - patch) * inside[..., None].astype(np.float32)
    return atlas


@dataclass(frozen=True, eq=False)
class _Topology:
    """What does not change from picture to picture of one person: triangles (T, 3), two_sided (T,), texture
    coordinates uv (V, 2), gloss and sss (V,)."""

    triangles: NDArray[np.int64]
    two_sided: NDArray[np.bool_]
    uv: Float
    gloss: Float
    sss: Float


def _grid_triangles(rows: int, cols: int, flip: bool) -> NDArray[np.int64]:
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(cols - 1), indexing="ij")
    a = r * cols + c
    b, d, f = a + 1, a + cols, a + cols + 1
    # The diagonal leans the other way on the other half: a symmetric head is then symmetric to the triangle.
    left = (c < (cols - 1) / 2)[..., None]
    first = np.where(left, np.stack([a, b, d], -1), np.stack([a, b, f], -1)).reshape(-1, 3)
    second = np.where(left, np.stack([b, f, d], -1), np.stack([a, f, d], -1)).reshape(-1, 3)
    out = np.concatenate([first, second])
    return out[:, ::-1] if flip else out


@lru_cache(maxsize=16)
def _topology(model: HeadModel) -> _Topology:
    rows, cols = model.skin.shape[:2]
    cx, ry = np.meshgrid(np.arange(cols) * TEX_COL, np.arange(rows) * TEX_ROW)
    triangles, sides = [_grid_triangles(rows, cols, False)], [False]
    uv: list[Float] = [np.stack([cx, ry], -1).reshape(-1, 2).astype(np.float32)]
    gloss, sss, start = [model.gloss.ravel()], [model.sss.ravel()], rows * cols
    for part in model.parts:
        r, c = part.grid.shape[:2]
        triangles.append(_grid_triangles(r, c, part.flip) + start)
        sides.append(part.two_sided)
        x0, y0, x1, y1 = part.uv
        u, v = np.meshgrid(np.linspace(x0, x1, c), np.linspace(y0, y1, r))
        uv.append(np.stack([u, v], -1).reshape(-1, 2))
        gloss.append(np.full(r * c, part.gloss))
        sss.append(np.full(r * c, part.sss))
        start += r * c
    two_sided = np.repeat(sides, [len(t) for t in triangles])
    return _Topology(
        np.concatenate(triangles),
        two_sided,
        np.concatenate(uv).astype(np.float32),
        np.concatenate(gloss).astype(np.float32),
        np.concatenate(sss).astype(np.float32),
    )


def _shadow(points: Float, topology: _Topology, light: Float) -> Float:
    """Light that reaches each vertex (V,), 0..1: a coarse orthographic depth map seen from the light,
    compared at nine neighbours, so the edges are soft."""
    side = np.cross(light, np.array([0.0, 1.0, 0.01], np.float32))
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(light, side), -light]).astype(np.float32)
    seen = points @ frame.T
    n, cell = 112, 3.6
    middle = seen[: len(seen) // 2].mean(0)
    xy = (seen[:, :2] - middle[:2]) / cell + n / 2
    depth = seen[:, 2] + 2000.0 - middle[2]
    lit = rasterise(xy, depth, topology.triangles, topology.two_sided, (n, n)).depth
    ix = np.clip(np.round(xy[:, 0] - 0.5).astype(np.int64), 1, n - 2)
    iy = np.clip(np.round(xy[:, 1] - 0.5).astype(np.int64), 1, n - 2)
    total = np.zeros(len(points), np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            total += np.clip((lit[iy + dy, ix + dx] + 10.0 - depth) / 5.0, 0, 1)
    return total / 9.0


def _light(points: Float, normals: Float, topology: _Topology, scene: Scene) -> Float:
    """(V, 4): what multiplies the albedo (linear RGB), and the white highlight."""
    light = np.asarray(scene.light, np.float32)
    light /= np.linalg.norm(light)
    shadow = _shadow(points, topology, light)
    lambert = normals @ light
    wrap = topology.sss[:, None] * np.array([0.30, 0.12, 0.06], np.float32)
    key = np.clip((lambert[:, None] + wrap) / (1 + wrap), 0, None)
    key *= np.minimum(shadow[:, None] + topology.sss[:, None] * np.array([0.10, 0.02, 0.0], np.float32), 1)
    sky = 0.62 - 0.38 * normals[:, 1:2]
    view = -points / np.sqrt((points * points).sum(1, keepdims=True))
    facing = np.clip((normals * view).sum(1), 0, 1)
    half = light + view
    half /= np.sqrt((half * half).sum(1, keepdims=True))
    shine = np.clip((normals * half).sum(1), 0, 1)
    out = np.empty((len(points), 4), np.float32)
    out[:, :3] = 1.25 * scene.light_power * key * np.asarray(scene.light_color, np.float32)
    out[:, :3] += scene.ambient * sky * np.asarray(scene.ambient_color, np.float32)
    out[:, :3] += abs(scene.rim) * np.clip(np.sign(scene.rim) * normals[:, :1] - 0.25, 0, 1)
    out[:, :3] *= (0.72 + 0.28 * facing)[:, None]  # what grazes the eye is dimmer: hair, pores, cloth
    power2 = shine * shine
    power8 = power2**4
    out[:, 3] = topology.gloss * scene.light_power * shadow * (0.35 * power8 * power8 + 0.10 * power8)
    return out


def _landmark_points(grid: Float, at: Float) -> Float:
    """Bilinear points (68, 3) of a vertex grid at fractional (row, column) (68, 2)."""
    r0, c0 = (
        np.minimum(at[:, 0].astype(int), grid.shape[0] - 2),
        np.minimum(at[:, 1].astype(int), grid.shape[1] - 2),
    )
    fr, fc = (at[:, 0] - r0)[:, None], (at[:, 1] - c0)[:, None]
    top = grid[r0, c0] * (1 - fc) + grid[r0, c0 + 1] * fc
    low = grid[r0 + 1, c0] * (1 - fc) + grid[r0 + 1, c0 + 1] * fc
    return top * (1 - fr) + low * fr


def _aim(points_head: Float, scene: Scene, size: int) -> Camera:
    """A camera whose picture of the landmarks has the wanted size and place: the focal length sets the size
    and the principal point the place, as in a crop of a larger photograph, so the head stays on the optical
    axis."""
    rotation = euler_to_matrix(scene.pose)
    t = np.array([scene.offset[0], scene.offset[1], scene.distance])
    unit = Camera(1.0, (0.0, 0.0), rotation, t)
    box = Box.of_face(unit.project(points_head))
    focal = scene.fill * size / max(box.width, box.height)
    cx, cy = box.center
    center = (size * (0.5 + scene.shift[0]) - focal * cx, size * (0.5 + scene.shift[1]) - focal * cy)
    return Camera(focal, center, rotation, t)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A head over a background at SUPERSAMPLE times the size: linear (H, W, 3), its fragments and labels."""

    linear: Float
    fragments: Fragments
    camera: Camera
    points_head: Float
    visible: NDArray[np.bool_]


def render_scene(style: HeadStyle, scene: Scene, size: int, background: Float) -> Drawing:
    """Draw one person in one scene over `background` (size * SUPERSAMPLE square, linear RGB, left
    untouched)."""
    model = build_head(style)
    topology = _topology(model)
    g = generic()
    skin = _express(model, scene)
    at = g.landmark.copy()
    at[[37, 38, 43, 44], 0] += (1 - scene.eye_open) * 5.5 / 3.3  # lids slide over the ball; a row is 3.3 mm
    points_head = _landmark_points(skin, at)
    camera = _aim(points_head, scene, size)

    coated = skin + grid_normals(skin, True) * model.coat[..., None]
    grids = [coated, *(part.grid for part in model.parts)]
    head = np.concatenate([x.reshape(-1, 3) for x in grids])
    body = euler_to_matrix(scene.body_pose)
    pivot = camera.rotation @ NECK_PIVOT + camera.translation
    points = camera.to_camera(head)
    below = np.flatnonzero(head[:, 1] > 118)
    weight = smoothstep(118, 178, head[below, 1])[:, None]
    points[below] += weight * ((head[below] - NECK_PIVOT) @ body.T + pivot - points[below])
    points = points.astype(np.float32)

    normals, start = [], 0
    for k, grid in enumerate(grids):
        r, c = grid.shape[:2]
        periodic = k == 0 or model.parts[k - 1].periodic
        n = grid_normals(points[start : start + r * c].reshape(r, c, 3), periodic).reshape(-1, 3)
        start += r * c
        if k > 0 and model.parts[k - 1].flip:
            n = -n
        if k > 0 and model.parts[k - 1].two_sided:
            away = (n * points[start - r * c : start]).sum(1, keepdims=True) > 0
            n = np.where(away, -n, n)
        normals.append(n)
    lit = _light(points, np.concatenate(normals), topology, scene)

    side = size * SUPERSAMPLE
    xy = (camera.project_camera(points) * SUPERSAMPLE).astype(np.float32)
    fragments = rasterise(xy, points[:, 2], topology.triangles, topology.two_sided, (side, side))
    values = fragments.interpolate(topology.triangles, np.concatenate([topology.uv, lit], 1))
    atlas = _paint_moving(model, scene)
    # remap takes at most 32767 rows or columns: fold the list of fragments into a rectangle.
    count = len(values)
    fold = -(-count // 512) * 512
    uv = np.zeros((2, fold), np.float32)
    uv[:, :count] = values[:, :2].T
    u, v = uv.reshape(2, -1, 512)
    albedo = cv2.remap(atlas, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    color = albedo.reshape(-1, 3)[:count] * values[:, 2:5] + values[:, 5:6]
    linear = background.copy()
    linear.reshape(-1, 3)[fragments.pixel] = color

    visible = _visible(skin, at, points_head, camera, fragments.depth, model)
    return Drawing(linear, fragments, camera, points_head, visible)


def _visible(
    skin: Float, at: Float, points_head: Float, camera: Camera, depth: Float, model: HeadModel
) -> NDArray[np.bool_]:
    """Landmarks (68,) whose surface faces the camera and that lie at the z-buffer's depth, give or take the
    slope of the skin over a pixel and the hair or beard that grows on it."""
    normal = _landmark_points(grid_normals(skin, True), at) @ camera.rotation.T
    cam = camera.to_camera(points_head)
    ray = cam / np.linalg.norm(cam, axis=1, keepdims=True)
    cosine = -(normal * ray).sum(1)
    pixel = np.floor(camera.project_camera(cam) * SUPERSAMPLE).astype(int)
    inside = (pixel >= 0).all(1) & (pixel < depth.shape[0]).all(1)
    at_pixel = np.clip(pixel, 0, depth.shape[0] - 1)
    # Where the pixel shows the background the landmark lies within a pixel of the silhouette: in front of nothing.
    near = depth[at_pixel[:, 1], at_pixel[:, 0]]
    millimetres = cam[:, 2] / (camera.focal_px * SUPERSAMPLE)
    slope = millimetres / np.maximum(cosine, 0.05)
    grown = np.minimum(_landmark_points(model.coat[..., None], at)[:, 0], 4.0)
    return (cosine > 0.05) & inside & (cam[:, 2] < near + 3.0 + slope + grown)


# ---- backgrounds and the camera


def _background(rng: np.random.Generator, side: int) -> Float:
    """(side, side, 3) linear light: a gradient, then a few of walls, frames, blobs, lines and noise, often
    out of focus."""
    n = 96
    color = rng.uniform(0.0, 0.9) ** 2.5  # most rooms are grey, more or less

    def shade() -> tuple[float, float, float]:
        c = rng.uniform(0.03, 0.97, 3)
        c = c.mean() + color * (c - c.mean()) + rng.uniform(-0.2, 0.2)
        c = np.clip(c * np.array([1.04, 1.0, 0.96]), 0.02, 0.98)
        return (float(c[0]), float(c[1]), float(c[2]))

    a, b = np.array(shade()), np.array(shade())
    yy, xx = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + 0.5 * (xx * np.cos(angle) + yy * np.sin(angle)), 0, 1)[..., None]
    out = np.ascontiguousarray(a + (b - a) * ramp, np.float32)

    kind = rng.random()
    if kind < 0.45:  # a room: shelves, pictures, windows, door frames
        for _ in range(int(rng.integers(3, 14))):
            x, y = (int(v) for v in rng.integers(-20, n, 2))
            w, h = (int(v) for v in rng.integers(4, 60, 2))
            cv2.rectangle(out, (x, y), (x + w, y + h), shade(), -1 if rng.random() < 0.7 else 2)
        for _ in range(int(rng.integers(0, 8))):
            p, q = rng.integers(-10, n + 10, 2), rng.integers(-10, n + 10, 2)
            cv2.line(out, (int(p[0]), int(p[1])), (int(q[0]), int(q[1])), shade(), int(rng.integers(1, 4)))
    elif kind < 0.75:  # outdoors, or far behind: soft blobs
        for _ in range(int(rng.integers(4, 22))):
            x, y = (int(v) for v in rng.integers(0, n, 2))
            axes = (int(rng.integers(3, 26)), int(rng.integers(3, 26)))
            cv2.ellipse(out, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, shade(), -1)
    if rng.random() < 0.6:
        cells = int(rng.integers(4, 30))
        noise = rng.standard_normal((cells, cells, 1), dtype=np.float32)
        noise = noise + np.float32(color) * rng.standard_normal((cells, cells, 3), dtype=np.float32)
        noise = cv2.resize(noise, (n, n), interpolation=cv2.INTER_CUBIC)
        out *= 1 + rng.uniform(0.02, 0.16) * noise
    if rng.random() < 0.75:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.5, 4.0)))
    out = cv2.resize(np.clip(out, 0, 1), (side, side), interpolation=cv2.INTER_LINEAR)
    return out * out


def _occlude(rng: np.random.Generator, linear: Float, box: Box, skin: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Put a hand, a bar, a scarf or mask, a microphone or a leaf-like blob in front, in place; its mask (H,
    W)."""
    k = SUPERSAMPLE
    height, width = linear.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    cx, cy = box.center[0] * k, box.center[1] * k
    side = max(box.width, box.height) * k
    x = cx + rng.uniform(-0.4, 0.4) * side
    y = cy + rng.uniform(-0.35, 0.5) * side
    color = rng.uniform(0.05, 0.9) * (1 - 0.5 * rng.random(3))

    def point(px: float, py: float) -> tuple[int, int]:
        return int(px + 0.5), int(py + 0.5)

    kind = int(rng.choice(5, p=[0.3, 0.2, 0.1, 0.15, 0.25]))
    if kind == 0:  # a hand: palm and four fingers, in the person's own colour
        color = np.asarray(skin) * rng.uniform(0.8, 1.05)
        lean = rng.uniform(-0.6, 0.6)
        y = cy + rng.uniform(0.15, 0.5) * side
        cv2.ellipse(mask, point(x, y), point(0.13 * side, 0.17 * side), float(np.degrees(lean)), 0, 360, 255, -1)
        for f in range(4):
            a = lean + (f - 1.5) * 0.16
            root = (x + 0.05 * side * (f - 1.5) * 1.1, y - 0.08 * side)
            length = side * (0.22 + 0.03 * (f in (1, 2)))
            tip = (root[0] + np.sin(a) * length, root[1] - np.cos(a) * length)
            cv2.line(mask, point(*root), point(*tip), 255, max(2, int(0.055 * side)))
        arm = (x - np.sin(lean) * side, y + np.cos(lean) * side)
        cv2.line(mask, point(x, y), point(*arm), 255, max(2, int(0.17 * side)))
    elif kind == 1:  # a bar, a strap, the edge of a door
        a = rng.uniform(0, np.pi)
        d = np.array([np.cos(a), np.sin(a)]) * 2 * side
        cv2.line(
            mask,
            point(x - d[0], y - d[1]),
            point(x + d[0], y + d[1]),
            255,
            max(2, int(rng.uniform(0.05, 0.22) * side)),
        )
    elif kind == 2:  # somebody's shoulder, a scarf pulled up: everything below a wavy line
        level = cy + rng.uniform(0.22, 0.5) * side
        xs = np.linspace(0, width, 24)
        ys = level + 0.03 * side * np.cumsum(rng.normal(0, 0.3, 24))
        poly = np.concatenate([np.stack([xs, ys], 1), [[width, height], [0, height]]])
        cv2.fillPoly(mask, [poly.astype(np.int32)], 255)
    elif kind == 3:  # a microphone on its stand
        y = cy + rng.uniform(0.1, 0.4) * side
        color = np.full(3, rng.uniform(0.03, 0.25))
        cv2.circle(mask, point(x, y), max(2, int(0.09 * side)), 255, -1)
        cv2.line(
            mask,
            point(x, y),
            point(x + rng.uniform(-0.6, 0.6) * side, y + 1.5 * side),
            255,
            max(2, int(0.07 * side)),
        )
    else:  # a leaf, a cup, a phone: some blob
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = side * rng.uniform(0.08, 0.2) * rng.uniform(0.7, 1.3, 12)
        poly = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        cv2.fillPoly(mask, [poly.astype(np.int32)], 255)
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), 1.2), np.uint8)
    round_off = cv2.GaussianBlur(mask, (0, 0), 0.03 * side).astype(np.float32) / 255
    grain = cv2.resize(rng.standard_normal((12, 12), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    paint = (color.astype(np.float32) ** 2) * (0.25 + 0.75 * round_off * (1 + 0.12 * grain))[..., None]
    alpha = mask.astype(np.float32)[..., None] / 255
    linear += (np.clip(paint, 0, 1) - linear) * alpha
    return mask > 127


def _develop(rng: np.random.Generator, linear: Float, size: int) -> NDArray[np.uint8]:
    """What lens, sensor and file do to a picture: blur, exposure, colour cast, noise, low resolution,
    JPEG."""
    image = cv2.resize(linear, (size, size), interpolation=cv2.INTER_AREA)
    scale = size / 192
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6)) * scale)
    elif rng.random() < 0.12:
        length = max(3, int(rng.uniform(3, 9) * scale) | 1)
        kernel = np.zeros((length, length), np.float32)
        a = rng.uniform(0, np.pi)
        mid = length // 2
        dx, dy = np.cos(a) * mid, np.sin(a) * mid
        cv2.line(kernel, (round(mid - dx), round(mid - dy)), (round(mid + dx), round(mid + dy)), 1.0)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    image *= (np.exp(rng.normal(0, 0.22)) * np.exp(rng.normal(0, 0.05, 3))).astype(np.float32)
    image = cv2.pow(np.clip(image, 0, 1), float(0.5 * np.exp(rng.normal(0, 0.12))))
    if rng.random() < 0.3:
        image = np.clip(0.5 + (image - 0.5) * np.float32(rng.uniform(0.65, 1.2)), 0, 1)
    if rng.random() < 0.12:
        image = np.repeat(image @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, 2)
    if rng.random() < 0.2:
        small = max(24, int(size * rng.uniform(0.3, 0.75)))
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA),
            (size, size),
            interpolation=cv2.INTER_LINEAR,
        )
    if rng.random() < 0.7:
        image = image + np.float32(min(rng.exponential(0.013), 0.05)) * rng.standard_normal(
            image.shape, dtype=np.float32
        )
    out = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(28, 92))
        _, code = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        out = np.ascontiguousarray(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
    return out


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
) -> RenderedHead:
    """Picture `index` of the data set `seed`.

    size: side of the square picture, pixels. heads_per_person: pictures that share a person. pose: (pitch,
    yaw, roll) degrees instead of the drawn one, all else equal. plain: nothing in front, flat grey behind,
    no blur, noise or colour cast. Raises ValueError for a negative seed or index, or a size below 32.
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
    drawn = draw_pose(stream(0))
    used: Pose = drawn if pose is None else (float(pose[0]), float(pose[1]), float(pose[2]))
    scene = draw_scene(stream(1), used)
    side = size * SUPERSAMPLE
    behind = np.full((side, side, 3), 0.25, np.float32) if plain else _background(stream(2), side)
    drawing = render_scene(style, scene, size, behind)
    landmarks = drawing.camera.project(drawing.points_head)
    box = Box.of_face(landmarks)
    visible = drawing.visible
    linear = drawing.linear
    if plain:
        small = cv2.resize(linear, (size, size), interpolation=cv2.INTER_AREA)
        image = np.clip(np.sqrt(np.clip(small, 0, 1)) * 255 + 0.5, 0, 255).astype(np.uint8)
    else:
        front = stream(3)
        if front.random() < 0.15:
            hidden = _occlude(front, linear, box, style.skin)
            at = np.clip((landmarks * SUPERSAMPLE).astype(int), 0, side - 1)
            visible = visible & ~hidden[at[:, 1], at[:, 0]]
        image = _develop(stream(4), linear, size)
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


def _measure(seconds: float = 6.0) -> float:
    """Pictures a second of CPU time on one thread, persons and all, at 192 px."""
    cv2.setNumThreads(1)
    render_head(0, 0)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        count += 1
        render_head(1, count)
    return count / (time.process_time() - start)


if __name__ == "__main__":
    print(f"{_measure():.1f} pictures a second and core")
