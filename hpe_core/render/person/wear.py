"""What is worn: hats, scarves, hoods, collars, masks and glasses, as meshes that lie on the person's chart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.render.person.anatomy import CHART_COLS, CHART_ROWS, anatomy, chart_column, unit, wrapped
from hpe_core.render.person.skin import linear, neckline
from hpe_core.render.person.style import RGB, HeadStyle
from hpe_core.render.person.surface import Surface

Float = NDArray[np.float32]
Number = NDArray[np.floating] | float
BLURRED = 4  # texels a side: clothes lie on a surface that is smoother than the skin


@dataclass(frozen=True, eq=False)
class Solid:
    """points, color (N, 3), gloss (N,), triangles (T, 3); normals (N, 3), either way."""

    points: Float
    normals: Float
    color: Float
    gloss: Float
    triangles: NDArray[np.int32]


def dress(style: HeadStyle, points: Float, surface: Surface) -> Solid | None:
    """All that is worn, but clear glass."""
    wear = _Wardrobe(style, surface)
    wear.clothes()
    wear.hats()
    if style.mask:
        wear.face_mask()
    if style.glasses != "none":
        _glasses(style, points, wear)
    if style.earrings and style.hat in ("none", "cap"):
        wear.earrings(points)
    return joined(wear.parts) if wear.parts else None


def joined(parts: list[Solid]) -> Solid:
    starts = np.cumsum([0, *(len(p.points) for p in parts)])
    triangles = np.concatenate([p.triangles + s for p, s in zip(parts, starts, strict=False)]).astype(np.int32)
    points, normals, color, gloss = (
        np.concatenate([getattr(p, n) for p in parts]) for n in ("points", "normals", "color", "gloss")
    )
    return Solid(points, normals, color, gloss, triangles)


def grid(points: NDArray[np.floating], color: NDArray[np.floating], gloss: float = 0.0) -> Solid:
    """A net of points (R, C, 3); color (3,) or (R, C, 3)."""
    r, c = points.shape[:2]
    along, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
    normals = np.cross(along, down).reshape(-1, 3)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    a = (np.arange(r - 1)[:, None] * c + np.arange(c - 1)).reshape(-1, 1)
    mirror = (a % c < (c - 1) / 2).ravel()  # the diagonal leans the other way on the other half
    one = np.where(mirror[:, None], a + [0, c + 1, 1], a + [0, c, 1])
    two = np.where(mirror[:, None], a + [0, c, c + 1], a + [c, c + 1, 1])
    colors = np.broadcast_to(color, points.shape).reshape(-1, 3)
    f = np.float32
    return Solid(points.reshape(-1, 3).astype(f), normals.astype(f), colors.astype(f), np.full(r * c, gloss, f),
                 np.concatenate([one, two]).astype(np.int32))  # fmt: skip


class _Wardrobe:
    def __init__(self, style: HeadStyle, surface: Surface) -> None:
        self.style = style
        self.rng = np.random.default_rng(np.random.SeedSequence([style.noise_seed, 2]))
        self.parts: list[Solid] = []
        self.surface = surface

    @cached_property
    def smooth(self) -> tuple[Float, Float]:
        """Points and normals, (CHART_ROWS, CHART_COLS, 3) / BLURRED texels."""
        return _blurred(self.surface.points, 5), _blurred(self.surface.normals, 9)

    def at(self, rows: Number, turn: Number, off: Number) -> NDArray[np.float64]:
        """Points (R, C, 3) `off` mm over the chart at rows and degrees round from the nose (R, C)."""
        rows, turn, off = np.broadcast_arrays(*(np.asarray(v, np.float32) for v in (rows, turn, off)))
        col = np.ascontiguousarray(chart_column(np.radians(turn)).astype(np.float32) / BLURRED - np.float32(0.5))
        row = np.ascontiguousarray((np.clip(rows, 2, CHART_ROWS - 3) + np.float32(0.5)) / BLURRED - np.float32(0.5))
        place, normal = (
            cv2.remap(chart, col, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for chart in self.smooth
        )
        normal /= np.linalg.norm(normal, axis=2, keepdims=True) + 1e-6
        return (place + normal * off[..., None]).astype(np.float64)

    def add(self, points: NDArray[np.floating], color: NDArray[np.floating] | RGB, gloss: float = 0.0) -> None:
        self.parts.append(grid(points, np.asarray(color), gloss))

    def around(self, rows: Number, off: NDArray[np.floating], color: NDArray[np.floating], gloss: float = 0.0) -> None:
        """A band round the head or neck: rows (R, C) and offsets over C columns from the back round to the back."""
        self.add(self.at(rows, _turns(off.shape[1]), off), color, gloss)

    # ---- clothes

    def clothes(self) -> None:
        style, c = self.style, linear(self.style.cloth_color) * np.float32(0.8)
        if style.hat in ("scarf", "hood"):
            return
        t = _turns(41)
        line = neckline(style, np.abs(t))
        up = np.linspace(0, 1, 5)[:, None]
        if style.cloth == "turtle":
            color = c * (0.92 + 0.08 * np.cos(np.abs(t) * 1.2))[None, :, None] + 0 * up[..., None]
            self.around(line - 22 + 28 * up, 4 + 3 * np.sin(np.pi * up) + 0 * t, color)
        elif style.cloth == "hoodie":
            self.around(line - 16 + 34 * up, 5 + 16 * np.sin(np.pi * up) + 0 * t, c * 0.95)
        elif style.cloth in ("shirt", "suit"):
            shirt = c if style.cloth == "shirt" else linear(style.cloth_second)
            t = _turns(41, 5.0)
            line = np.interp(np.abs(t), [0, 40, 90, 180], [292, 274, 258, 250])
            self.add(self.at(line + 6 - 20 * up, t, 4 + 5 * up), shirt * 0.9)
            flap = np.interp(np.abs(t), [0, 12, 45, 180], [26, 34, 20, 16])
            self.add(self.at(line - 14 + flap * up, t, 10 + 5 * up + 2.0), shirt)

    # ---- hats

    def hats(self) -> None:
        style, c = self.style, linear(self.style.hat_color)
        if style.hat == "none":
            return
        tall = np.linspace(0, 1, 12)[:, None]
        t = _turns(41)
        a = np.abs(t)
        if style.hat in ("scarf", "hood"):
            self._cover(style.hat == "hood", c)
            return
        edge = {"cap": ([0, 60, 100, 180], [102, 116, 128, 146]), "beanie": ([0, 50, 90, 180], [96, 118, 150, 172]),
                "brim": ([0, 60, 100, 180], [92, 104, 118, 134]),
                "helmet": ([0, 50, 80, 110, 180], [84, 104, 160, 178, 190])}[style.hat]  # fmt: skip
        lower = 3 * (not style.symmetric) * self.rng.normal()
        bottom = np.interp(a, *edge) + lower
        rows = 4 + (bottom - 4) * tall
        off = {"cap": 8 + 6 * (1 - tall), "beanie": 8 + 12 * (1 - tall) ** 2, "brim": 9 + 20 * (1 - tall),
               "helmet": 24 + 4 * np.sin(tall * 3)}[style.hat]  # fmt: skip
        off = off + 0.3 * style.hair_volume + 0 * t
        shade = np.ones((12, 41))
        if style.hat == "beanie":
            shade = shade * (0.86 + 0.14 * np.cos(a * 1.6))[None]
            fold = tall[:, 0] > 0.76
            off[fold] += 4
        elif style.hat == "cap":
            shade = shade * (1 - 0.25 * (np.abs((a + 30) % 60 - 30) < 3))[None]
        elif style.hat == "helmet":
            shade = shade * np.where(np.abs(a - 14) < 6, 0.35, 1.0)[None] if style.noise_seed % 2 else shade
        elif style.hat == "brim":
            shade[tall[:, 0] > 0.8] *= 0.45
        gloss = {"helmet": 1.0}.get(style.hat, 0.0)
        self.around(rows, off, c * shade[..., None], gloss=gloss)
        if style.hat in ("cap", "brim"):
            back_to_front = style.hat == "cap" and style.noise_seed % 7 == 0
            reach = 62.0 if style.hat == "cap" else 45.0 + 40 * (style.noise_seed % 97) / 97
            t = np.linspace(-62, 62, 21) if style.hat == "cap" else t
            rim = self.at(np.interp(np.abs(t), *edge)[None] + lower - 1, t[None], float(off[-1, 20]))[0]
            out = rim * [1.0, 0, 1.0] / np.linalg.norm(rim[:, [0, 2]], axis=1, keepdims=True)
            share = np.cos(np.radians(t * 90 / 66)) ** 0.5 if style.hat == "cap" else np.ones_like(t)
            s = np.linspace(0, 1, 5)[:, None, None]
            if style.hat == "cap":
                out = 0.5 * out + [0, 0, -0.75]
            points = rim + s * reach * (share[:, None] * out)
            points[..., 1] += (0.30 * reach * s**1.5 * (0.5 if style.hat == "brim" else 1) * share[:, None])[..., 0]
            points[..., 1] += 0.0016 * points[..., 0] ** 2 * (style.hat == "cap") * s[..., 0]
            if back_to_front:
                points[..., [0, 2]] = 2 * np.array([0, 5.0]) - points[..., [0, 2]]
            self.add(points, c * 0.85)

    def _cover(self, hood: bool, color: Float) -> None:
        """A headscarf or a hood: everything round an oval of the face."""
        style = self.style
        phi = np.linspace(-np.pi, np.pi, 49)
        wide, top, low = (66, 80, 262) if hood else (58, 84, 254)
        middle = 168.0
        oval_turn = wide * np.sin(phi)
        oval_row = middle - np.cos(phi) * np.where(np.cos(phi) > 0, middle - top, low - middle)
        far_turn = 178 * np.sign(np.sin(phi)) * np.abs(np.sin(phi)) ** 0.35
        far_row = middle - np.cos(phi) * np.where(np.cos(phi) > 0, middle - 4, 330 - middle)
        s = np.linspace(0, 1, 16)[:, None] ** 1.2
        rows, turn = oval_row + s * (far_row - oval_row), oval_turn + s * (far_turn - oval_turn)
        below = np.clip((rows - 215) / 40, 0, 1) * np.clip((330 - rows) / 60, 0, 1)
        off = (22 if hood else 9) * np.clip(0.35 + 3 * s, 0, 1) + (14 if hood else 20) * below
        wrinkle = 2.2 * np.sin(phi * 9 + 5 * s + style.noise_seed % 5) * (np.cos(phi) < 0.3) * s
        if not style.symmetric:
            off = off + wrinkle
        a = np.abs(turn)
        cut = np.clip((a - 70) / 15, 0, 1) * np.clip((115 - a) / 15, 0, 1) * (np.abs(rows - 175) < 32)
        off = off - 0.5 * np.minimum(off, 8) * cut  # over the ears, which stand off by themselves
        shade = 0.88 + 0.12 * np.clip(s * 6, 0, 1) + 0.06 * np.sin(phi * 14 + 9 * s)
        if style.symmetric:
            shade = 0.9 + 0 * shade
        self.add(self.at(rows, turn, off), color * shade[..., None])

    def face_mask(self) -> None:
        t = np.linspace(-64, 64, 21)
        s = np.linspace(0, 1, 9)[:, None]
        a = np.abs(t) / 64
        top, low = 160 + 22 * a**0.7, 268 - 44 * a**1.5
        off = 4 + 7 * np.sin(np.pi * np.clip(s * 0.9 + 0.1, 0, 1)) * (1 - a**3) + 3
        pleats = 1 - 0.12 * (np.abs((s * 4) % 1 - 0.5) < 0.12) + 0 * t
        color = linear(self.style.mask_color)
        self.add(self.at(top + (low - top) * s, t, off), color * pleats[..., None])
        for side in (-1, 1):
            for row in (184.0, 222.0):
                u = np.linspace(62, 88, 5)[None] * side
                rows = np.interp(np.abs(u), [62, 88], [row, 172 + (row > 200) * 22])
                self.add(self.at(np.array([[0.0], [2.2]]) + rows, u, 4.0), color)

    def earrings(self, points: Float) -> None:
        lobes = anatomy().shapes["ears/l-ear-lobe-incr"], anatomy().shapes["ears/r-ear-lobe-incr"]
        size = 3 + 9 * (self.style.noise_seed % 11) / 11
        for rows, moves in lobes:
            low = rows[np.abs(moves).max(1).argmax()]
            u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 9), np.linspace(0, np.pi, 5))
            ball = np.stack([np.cos(u) * np.sin(v), np.cos(v), np.sin(u) * np.sin(v)], -1) * size / 2
            self.add(points[low] + [np.sign(points[low, 0]) * 2, size / 2 + 1, 0] + ball, (0.6, 0.5, 0.3), 4.0)


def _blurred(chart: Float, blur: float) -> Float:
    size = CHART_COLS // BLURRED, CHART_ROWS // BLURRED
    small = cv2.resize(np.ascontiguousarray(chart), size, interpolation=cv2.INTER_AREA)
    return wrapped(cv2.GaussianBlur(small, (0, 0), blur / BLURRED))


def _turns(count: int, gap: float = 0.0) -> NDArray[np.float64]:
    """Degrees round from the nose: from the back to the back, or with a gap from the front to the front."""
    if gap == 0:
        return np.linspace(-180, 180, count)
    half = np.linspace(gap, 180, count // 2 + 1)
    return np.concatenate([-half, half[::-1][1:]])


# ---- glasses


def _outline(style: HeadStyle, points: Float, side: int) -> NDArray[np.float64]:
    """(25, 3) the rim of one glass, closed."""
    marks = anatomy().landmarks_of(points.astype(np.float64))
    eye = marks[36:42].mean(0) if side < 0 else marks[42:48].mean(0)
    bridge = marks[27]
    t = np.linspace(0, 2 * np.pi, 25)
    power = 2 / style.frame_round
    wide, high = 24.5 * style.frame_size, (25 - 2.6 * style.frame_round) * style.frame_size
    if style.glasses == "sun":
        wide, high = wide * 1.12, high * 1.12
    x = eye[0] + side * 1.5 + wide * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power * side
    y = eye[1] + 2.5 + high * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power
    front = min(bridge[2] - 3.5, eye[2] - 15.0)
    return np.stack([x, y, front + 0.0036 * x * x - 0.10 * (y - eye[1])], -1)


def _glasses(style: HeadStyle, points: Float, wear: _Wardrobe) -> None:
    color, rim = linear(style.frame), max(style.rim, 0.9)
    for side in (-1, 1):
        ring = _outline(style, points, side)
        middle = ring[:-1].mean(0)
        away = (ring - middle) / np.linalg.norm(ring - middle, axis=1, keepdims=True)
        wear.add(np.stack([ring - away * rim / 2 - [0, 0, 0.8], ring + away * rim / 2 - [0, 0, 0.8]]), color, 0.8)
        wear.add(np.stack([ring + away * rim / 2 - [0, 0, 0.8], ring + away * rim / 2 + [0, 0, 2.2]]), color, 0.5)
        if style.glasses == "sun":
            dark = np.array([0.012, 0.012, 0.013]) + 0.03 * linear(style.cloth_second) * (style.noise_seed % 3 == 0)
            wear.parts.append(_glass(ring, dark, 2.2))
        outer = ring[np.argmax(ring[:, 0] * side - 0.3 * np.abs(ring[:, 1] - middle[1] + 8))]
        ear = anatomy().landmarks_of(points.astype(np.float64))[0 if side < 0 else 16] + [side * 5.0, -13.0, 12.0]
        bend = (outer + ear) / 2 + [side * 4.0, 0, 0]
        s = np.linspace(0, 1, 9)[:, None]
        line = (1 - s) ** 2 * outer + 2 * s * (1 - s) * bend + s * s * ear
        line = np.concatenate([line, ear + [[0, 8, 14], [0, 20, 20]]])
        high = np.array([0, 0.5 + 0.6 * rim, 0])
        wear.add(np.stack([line - high, line + high]), color, 0.5)
    left, right = _outline(style, points, -1), _outline(style, points, 1)
    a, b = left[np.argmax(left[:, 0])], right[np.argmin(right[:, 0])]
    s = np.linspace(0, 1, 7)[:, None]
    line = a + s * (b - a) + np.sin(np.pi * s) * [0, -2.0, -1.5]
    high = np.array([0, max(rim / 2, 0.7), 0])
    wear.add(np.stack([line - high, line + high]), color, 0.8)


def lenses(style: HeadStyle, points: Float) -> Solid | None:
    """The glass of clear glasses."""
    if style.glasses != "clear":
        return None
    return joined([_glass(_outline(style, points, side), np.zeros(3), 0.0) for side in (-1, 1)])


def _glass(ring: NDArray[np.float64], color: NDArray[np.floating], gloss: float) -> Solid:
    """A slightly domed pane within a rim."""
    middle = ring[:-1].mean(0)
    s = np.linspace(0, 1, 4)[:, None, None]
    pane = grid(middle + s * (ring - middle) - [0, 0, 2.5] * (1 - s**2), color, gloss)
    normals = (pane.points - middle.astype(np.float32)) * np.float32(0.014)
    normals[:, 2] = -1.0
    return replace(pane, normals=unit(normals))
