"""One picture's light: a person posed, lit, drawn over a background, with labels.

The head is drawn twice, once for where on the chart a pixel lies and how it shines, once for the light that reaches it;
what is worn and the hair follow onto the same depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.geometry.crop import Box
from hpe_core.geometry.rotation import euler_to_matrix
from hpe_core.render.light import Light, Shadow, directions, nostrils, open_share, open_to
from hpe_core.render.person.anatomy import (
    EYES,
    MOUTH,
    NECK_PIVOT,
    SKIN,
    TEETH,
    TONGUE,
    anatomy,
    body_share,
    dot,
    landmark_normals,
    normals_of,
    spread,
    unit,
)
from hpe_core.render.person.figure import Figure, build_figure, eye_rows
from hpe_core.render.person.style import HeadStyle
from hpe_core.render.person.wear import Solid
from hpe_core.render.raster import FAR, Camera, Frame, color_map, fronts

Pose = tuple[float, float, float]
Float = NDArray[np.float32]

SUPERSAMPLE = 2


@dataclass(frozen=True)
class Scene:
    """Everything of one picture that is not the person. Lengths in mm; `fill` is the face box's longer side and `shift`
    its centre's offset, both as fractions of the frame. face: names of facial actions and their weights."""

    pose: Pose = (0.0, 0.0, 0.0)
    body_pose: Pose = (0.0, 0.0, 0.0)
    distance: float = 800.0
    fill: float = 0.58
    shift: tuple[float, float] = (0.0, 0.0)
    light: Light = Light()
    face: tuple[tuple[str, float], ...] = ()
    gaze: tuple[float, float] = (0.0, 0.0)  # degrees to image right and down


@dataclass(frozen=True, eq=False)
class Drawing:
    """A head over a background at SUPERSAMPLE times the size: linear (H, W, 3), its depth (H, W) mm, FAR where only
    the background is, and labels."""

    linear: Float
    depth: Float
    camera: Camera
    points_head: Float
    visible: NDArray[np.bool_]


# ---- posing the person


def _aim(points_head: Float, scene: Scene, size: int) -> Camera:
    """A camera whose picture of the landmarks has the wanted size and place: the focal length sets the size
    and the principal point the place, as in a crop of a larger photograph, so the face stays on the optical
    axis. The face, not the skull: for a camera at half a metre that aims at the skull, a face beyond 30 degrees of yaw
    is turned 5 to 9 degrees further, and who sees a crop alone can tell no more than what the face shows."""
    rotation = euler_to_matrix(scene.pose)
    t = np.array([0.0, 0.0, scene.distance]) - rotation @ points_head.mean(axis=0)
    unit = Camera(1.0, (0.0, 0.0), rotation, t)
    box = Box.of_face(unit.project(points_head))
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
    for name, before, after in zip(("eyeBlinkRight", "eyeBlinkLeft"), open_before, _lid_gaps(closed), strict=True):
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
        share = body_share(points)
        low = np.flatnonzero(share)
        out = [values @ self.head.T for values in (points, *vectors)]
        body = [values.take(low, axis=0) @ self.body.T for values in (points, *vectors)]
        out[0] += self.shift
        body[0] += self.body_shift
        for stiff, lower in zip(out, body, strict=True):
            upper = stiff.take(low, axis=0)
            lower -= upper
            lower *= share[low, None]
            stiff[low] = upper + lower
        return out

    def project(self, points: Float) -> tuple[Float, Float]:
        """(pixels at SUPERSAMPLE (N, 2), pixels per mm (N,))."""
        scale = np.float32(self.camera.focal_px * SUPERSAMPLE) / np.maximum(points[:, 2], 40)
        centre = np.asarray(self.camera.center_px, np.float32) * SUPERSAMPLE
        return (points[:, :2] * scale[:, None] + centre).astype(np.float32), scale.astype(np.float32)


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
    reached = shadow.lit(points) * (1 - nostrils())
    diffuse, gleam = _light_skin(points, normals, reached, light, posed)

    side = size * SUPERSAMPLE
    xy, _ = posed.project(points)
    facing = fronts(xy, triangles, side)
    chart = Frame.empty(side)
    chart.draw(xy, points[:, 2], facing, np.concatenate([shared.uv, gleam[:, None]], 1))
    shade = _shaded(xy, points[:, 2], facing, diffuse, side)
    seen = chart.depth < FAR / 2
    box = _span(np.asarray(seen.any(1))), _span(np.asarray(seen.any(0)))
    column, row, shine = (np.ascontiguousarray(chart.color[*box, k]) for k in range(3))
    surface = cv2.remap(
        figure.atlas, column - np.float32(0.5), row - np.float32(0.5), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    linear = background.copy()
    shine *= surface[..., 3]
    for k in range(3):
        plane = surface[..., k] * shade[*box, k]
        plane += shine
        np.copyto(linear[*box, k], plane, where=seen[box])
    frame = Frame(linear, chart.depth)

    if (solid := figure.solid) is not None:
        at, out = posed(solid.points, solid.normals)
        frame.draw(posed.project(at)[0], at[:, 2], solid.triangles, shade_solid(solid, at, out, light, shadow), "both")
    for grown in figure.strands:
        (at,) = posed(grown.points.reshape(-1, 3))
        strands = grown.shown(posed.project(at)[0], at[:, 2], frame.depth)
        if not len(strands.points):
            continue
        at, out = posed(strands.points.reshape(-1, 3), strands.out.reshape(-1, 3))
        xy, scale = posed.project(at)
        reached = shadow.lit(at + 6 * out)
        lit = strands.shade(at, out, light, reached)
        edges, depth, colors, ribbons = strands.ribbons(xy, at[:, 2], scale, lit, frame.depth)
        frame.draw(edges, depth, ribbons, colors, "both")
    if (lenses := figure.lenses) is not None:
        at, out = posed(lenses.points, lenses.normals)
        glass = Frame(np.zeros_like(frame.color), frame.depth.copy())
        glass.draw(posed.project(at)[0], at[:, 2], lenses.triangles, 0.02 + mirrored(at, out, light, 40.0), "both")
        share = np.float32(0.12) * (glass.color > 0)
        frame.color[:] += share * (0.8 * glass.color - 0.7 * frame.color)
    visible = _visible(landmark_normals(normals), points_head, camera, frame.depth)
    return Drawing(frame.color, frame.depth, camera, points_head, visible)


def _shaded(xy: Float, z: Float, facing: NDArray[np.integer], diffuse: Float, side: int) -> Float:
    """(side, side, 3) the light on what is drawn, and a little beyond its rim. It is drawn at half the size: light
    changes slowly."""
    small = color_map(xy / 2, z, facing, diffuse, np.zeros((side // 2, side // 2, 3), np.float32))
    drawn = np.sign(small[..., 0])
    near = cv2.boxFilter(drawn, -1, (3, 3), normalize=False)
    rim = np.nonzero((drawn == 0) & (near > 0))
    small[rim] = cv2.boxFilter(small, -1, (3, 3), normalize=False)[rim] / near[rim][:, None]
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)


def _span(mask: NDArray[np.bool_]) -> slice:
    """From the first to the last that is true; all, if none is."""
    found = np.flatnonzero(mask)
    return slice(found[0], found[-1] + 1) if len(found) else slice(None)


def _light_skin(points: Float, normals: Float, shadow: Float, light: Light, posed: _Posed) -> tuple[Float, Float]:
    """What multiplies the albedo (V, 3), and the white highlight (V,)."""
    around = directions() @ posed.head.T
    reach = normals @ around.T
    np.clip(reach, 0, 2, out=reach)  # cosines; with one limit it takes three times as long
    reach *= open_to()
    sky = reach @ light.radiance(around)
    lamp = np.asarray(light.lamp, np.float32)
    lambert = normals @ lamp
    key = np.asarray(light.tint, np.float32) * np.float32(light.power)
    wrap = np.array([0.22, 0.08, 0.04], np.float32)
    diffuse = np.empty((3, len(points)), np.float32)
    for k, plane in enumerate(diffuse):
        direct = np.maximum((lambert + wrap[k]) / (1 + wrap[k]), 0)
        direct *= shadow
        np.add(sky[:, k], direct * key[k], out=plane)
    for plane, share in zip(diffuse, (0.75, 0.35), strict=False):  # light spreads in skin, red furthest
        plane += share * (spread(plane, 2) - plane)
    view = -unit(points)
    facing = np.clip(dot(normals, view), 0, 1)
    shine = np.clip(dot(normals, unit(lamp + view)), 0, 1)
    fresnel = 0.03 + 0.35 * (1 - facing) ** 4
    red, green, blue = light.radiance(_bounced(normals, view, facing), 12.0).T
    around_light = (red + green + blue) / np.float32(3) * open_share()
    highlight, near = 0.10 * shine**14, np.flatnonzero(shine > 0.5)
    highlight[near] += 0.10 * shine[near] ** 50  # elsewhere it is below a rounding, and slow to find out
    gleam = fresnel * around_light + shadow * light.power * highlight * (lambert > 0)
    eyes = np.concatenate(eye_rows())
    gleam[eyes] = 0.02 * around_light[eyes] + 0.5 * shadow[eyes] * light.power * shine[eyes] ** 300
    return diffuse.T, gleam


def mirrored(points: Float, normals: Float, light: Light, gloss: float) -> Float:
    """(N, 3) what a mirror shows at points of the camera frame whose normals may point either way."""
    view = -unit(points)
    bounced = _bounced(normals, view, dot(normals, view))
    lamp = np.exp(np.float32(gloss * 4) * (bounced @ np.asarray(light.lamp, np.float32) - 1))
    return light.radiance(bounced, gloss) + (lamp * np.float32(4 * light.power))[:, None]


def _bounced(normals: Float, view: Float, facing: Float) -> Float:
    """(N, 3) where a mirror with these normals sends the ray of sight; facing (N,): normals @ view."""
    out, twice = np.empty_like(view), 2 * facing
    for k in range(3):
        np.subtract(twice * normals[:, k], view[:, k], out=out[:, k])
    return out


def shade_solid(solid: Solid, at: Float, out: Float, light: Light, shadow: Shadow) -> Float:
    """(N, 3) light off what is worn, camera frame; the head casts its shadow on it."""
    facing = -dot(out, unit(at))[:, None]
    out = np.where(facing < 0, -out, out)
    lamp = np.asarray(light.lamp, np.float32)
    direct = np.clip((out @ lamp + 0.1) / 1.1, 0, 1) * shadow.lit(at + 4 * out)
    sky, color, power = light.radiance(out, 1.5), np.empty_like(solid.color), np.float32(light.power)
    for k, tint in enumerate(np.asarray(light.tint, np.float32)):
        np.multiply(solid.color[:, k], 0.85 * sky[:, k] + direct * tint * power, out=color[:, k])
    shiny = solid.gloss > 0
    if shiny.any():
        fresnel = 0.03 + 0.3 * (1 - np.abs(facing[shiny])) ** 4
        color[shiny] += fresnel * solid.gloss[shiny, None] * mirrored(at[shiny], out[shiny], light, 30.0)
    return color


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
