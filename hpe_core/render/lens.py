"""From light to a file: what is in front, then blur, exposure, colour, noise, sharpening, resampling and JPEG."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from hpe_core.geometry.crop import Box
from hpe_core.render.person.skin import linear
from hpe_core.render.person.style import HeadStyle

Float = NDArray[np.float32]


def expose(linear_light: Float, box: Box, aim: float = 0.25, share: float = 0.75) -> Float:
    """The picture (H, W, 3) as a camera meters it: mostly by the face, 1 is what becomes white."""
    height, width = linear_light.shape[:2]
    y1, y2 = (int(min(max(v, 0), height - 1)) for v in (box.y1, box.y2))
    x1, x2 = (int(min(max(v, 0), width - 1)) for v in (box.x1, box.x2))
    face = linear_light[y1 : y2 + 1, x1 : x2 + 1].mean()
    return linear_light * np.float32((aim / max(float(face), 1e-3)) ** share)


def tone(light: Float, contrast: float = 0.8) -> Float:
    """Linear light -> sRGB in 0..1 with a soft shoulder."""
    light = np.maximum(light, 0)
    shoulder = 1 + light * np.float32(0.42)
    light *= 1 + light * np.float32(0.11)
    light /= shoulder
    light *= np.float32(1.28)
    # Of float64: of float32 OpenCV gives other bits with AVX-512 than without.
    out = np.asarray(cv2.pow(np.minimum(light, 1, out=light).astype(np.float64), 1 / 2.2), np.float32)
    curve = out * out
    curve *= 3 - 2 * out  # film's S
    curve -= out
    curve *= np.float32(0.5 * contrast)
    out += curve
    return np.clip(out, 0, 1, out=out)


def develop(rng: np.random.Generator, light: Float, box: Box, size: int) -> NDArray[np.uint8]:
    """Light (2 * size square) -> (size, size, 3) uint8 as some camera and some website leave it."""
    scale = size / 192
    image = cv2.resize(light, (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.08:  # out of focus, or a soft lens
        image = cv2.GaussianBlur(image, (0, 0), float(rng.gamma(1.6, 0.4) + 0.3) * scale)
    if rng.random() < 0.05:  # moved
        image = _moved(rng, image, max(3, int(rng.uniform(3, 10) * scale) | 1))
    if rng.random() < 0.25:  # light that strays in the lens
        tiny = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
        glow = cv2.resize(cv2.GaussianBlur(tiny, (0, 0), 4), (size, size))
        image += np.float32(rng.uniform(0.02, 0.2)) * (glow - image)
    image = expose(image, box, float(0.25 * np.exp(rng.normal(0, 0.42))), float(rng.uniform(0.6, 0.95)))
    image *= np.exp((rng.normal(0, 0.08, 3) + [0.01, 0.0, 0.01]) * [1.0, 0.35, 1.2]).astype(np.float32)  # white balance
    if rng.random() < 0.65:  # photons, then the sensor
        gain = np.float32(min(rng.exponential(0.010), 0.06))
        coarse = rng.random() < 0.3
        n = size // 2 if coarse else size
        noise = rng.standard_normal((n, n, 3), dtype=np.float32)
        grey = 0.75 * noise[..., 0]
        noise *= 0.5
        for k in range(3):
            noise[..., k] += grey
        if coarse:
            noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR)
        noise *= gain
        image += noise * np.sqrt(np.maximum(image, 0.004) * 1.8)
    image -= np.float32(min(rng.exponential(0.012), 0.04))  # blacks that a camera or its owner let go
    image = tone(image, float(rng.uniform(0.4, 2.4)))
    if rng.random() < 0.6:  # colour
        grey = image @ np.array([[0.299], [0.587], [0.114]], np.float32)
        image = grey + (image - grey) * np.float32(np.exp(rng.normal(-0.15, 0.25)))
    old = rng.random()
    if old < 0.15:  # black and white, now and then toned
        image = np.repeat(image @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, 2)
        if old < 0.02:
            image = image ** np.array([0.85, 1.0, 1.2], np.float32)
    if rng.random() < 0.07:  # it was smaller once
        small = max(20, int(size * rng.uniform(0.3, 0.8)))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        how = cv2.INTER_CUBIC if rng.random() < 0.6 else cv2.INTER_LINEAR
        image = cv2.resize(image, (size, size), interpolation=how)
    if rng.random() < 0.85:  # sharpened
        soft = cv2.GaussianBlur(image, (0, 0), float(max(0.6, 1.2 * scale)))
        image = image + np.float32(rng.uniform(0.3, 1.5)) * (image - soft)
    if rng.random() < 0.08:
        _edge(rng, image, box)
    out = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(35, 95))
        _, code = cv2.imencode(".jpg", out[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        out = np.ascontiguousarray(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])
    return out


def _edge(rng: np.random.Generator, image: Float, box: Box) -> None:
    """The photograph ends near the face: beyond is black, or white, in place."""
    side = max(box.width, box.height)
    beyond = np.float32(rng.choice([0.0, 0.0, 0.0, 1.0, 0.5]))
    for _ in range(int(rng.integers(1, 3))):
        gap = rng.uniform(-0.02, 0.35) * side
        which = int(rng.integers(4))
        low, high = (box.x1, box.x2) if which < 2 else (box.y1, box.y2)
        rest = slice(int(high + gap), None) if which % 2 else slice(0, int(max(low - gap, 0)))
        image[(slice(None), rest) if which < 2 else rest] = beyond


def _moved(rng: np.random.Generator, image: Float, length: int) -> Float:
    kernel = np.zeros((length, length), np.float32)
    angle, mid = rng.uniform(0, np.pi), length // 2
    dx, dy = np.cos(angle) * mid, np.sin(angle) * mid
    cv2.line(kernel, (round(mid - dx), round(mid - dy)), (round(mid + dx), round(mid + dy)), 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


class _Stencil:
    """What stands in front: its mask (H, W), and how bright each pixel of it is. Lengths are pixels."""

    def __init__(self, height: int, width: int, side: float) -> None:
        self.mask, self.sleeve = np.zeros((2, height, width), np.uint8)
        self.shade = np.ones((height, width), np.float32)
        self.side = side

    def polygon(self, corners: Float) -> None:
        cv2.fillPoly(self.mask, [np.round(corners).astype(np.int32)], 255, cv2.LINE_AA)

    def oval(self, at: tuple[float, float], share: tuple[float, float], turn: float = 0.0) -> None:
        axes = _pixel(share[0] * self.side, share[1] * self.side)
        cv2.ellipse(self.mask, _pixel(*at), axes, turn, 0, 360, 255, -1, cv2.LINE_AA)

    def capsule(self, a: Iterable[float], b: Iterable[float], wide: float) -> None:
        """Round: its rims are darker than its middle."""
        a, b = _pixel(*a), _pixel(*b)
        cv2.line(self.mask, a, b, 255, max(2, int(wide)), cv2.LINE_AA)
        for share, shade in ((1.0, 0.5), (0.85, 0.72), (0.68, 0.88), (0.45, 1.0), (0.2, 1.06)):
            cv2.line(self.shade, a, b, shade, max(1, int(share * wide)), cv2.LINE_AA)

    def hand(self, rng: np.random.Generator, palm: Float, lean: float) -> None:
        """An arm in a sleeve or a bare one, a palm, four fingers and a thumb."""
        across, up = np.array([np.cos(lean), np.sin(lean)]), np.array([np.sin(lean), -np.cos(lean)])
        wide = 0.14 * self.side
        outline = ((-1, 1.0), (1, 1.1), (1.05, -0.6), (0.6, -1.5), (-0.6, -1.5), (-1.1, -0.4))
        self.capsule(palm - 0.8 * wide * up, palm - up * self.side * 1.4, 1.35 * wide)
        self.polygon(np.array([palm + wide * (a * across + b * up) for a, b in outline]))
        if rng.random() < 0.6:
            cuff, elbow = palm - wide * rng.uniform(2.6, 4.5) * up, palm - up * self.side * 1.4
            self.capsule(cuff, elbow, 1.8 * wide)
            cv2.line(self.sleeve, _pixel(*cuff), _pixel(*elbow), 255, max(2, int(1.8 * wide)), cv2.LINE_AA)
        bent = rng.uniform(0.45, 1.0)
        for f, long in enumerate((0.85, 1.0, 0.95, 0.75)):
            root = palm + wide * ((f - 1.5) * 0.52 * across + 0.9 * up)
            way = up + (f - 1.5) * rng.uniform(0.02, 0.16) * across
            self.capsule(root - 0.7 * wide * way, root + way * wide * 1.9 * long * bent, 0.5 * wide)
        thumb = palm + wide * (np.sign(rng.normal()) * np.array([1.0, 1.0]) * across)
        bend = 0.5 * np.sign((thumb - palm) @ across) * across
        self.capsule(thumb - 0.5 * wide * (up + bend), thumb + wide * (1.0 * up + bend), 0.5 * wide)
        flat = np.array([palm + 0.9 * wide * (a * across + b * up) for a, b in outline])
        cv2.fillPoly(self.shade, [np.round(flat).astype(np.int32)], 0.97, cv2.LINE_AA)


def _pixel(x: float, y: float) -> tuple[int, int]:
    return int(x + 0.5), int(y + 0.5)


def occlude(rng: np.random.Generator, light: Float, box: Box, style: HeadStyle) -> NDArray[np.bool_]:
    """Put something in front, in place: a hand, a microphone, a phone, a cup, a bar, leaves, somebody's shoulder or
    hair. Returns its mask (H, W). `box` is in the picture's own pixels."""
    height, width = light.shape[:2]
    side = max(box.width, box.height)
    cx, cy = box.center
    x, y = cx + rng.uniform(-0.4, 0.4) * side, cy + rng.uniform(-0.3, 0.5) * side
    stencil = _Stencil(height, width, side)
    color = (rng.uniform(0.05, 0.9) * (1 - 0.5 * rng.random(3))).astype(np.float32) ** 2
    kind = str(rng.choice(["hand", "mic", "phone", "bar", "shoulder", "leaves", "blob"],
                          p=[0.36, 0.14, 0.10, 0.10, 0.10, 0.08, 0.12]))  # fmt: skip
    if kind == "hand":
        color = linear(style.skin) * np.float32(rng.uniform(0.8, 1.05))
        lean, y = float(rng.uniform(-0.9, 0.9)), cy + rng.uniform(0.1, 0.5) * side
        stencil.hand(rng, np.array([x, y]), lean)
    elif kind == "mic":
        y = cy + rng.uniform(0.15, 0.42) * side
        color = np.full(3, rng.uniform(0.003, 0.06), np.float32)
        cv2.circle(stencil.mask, _pixel(x, y), max(2, int(0.08 * side)), 255, -1, cv2.LINE_AA)
        stencil.capsule((x, y), (x + rng.uniform(-0.8, 0.8) * side, y + 1.5 * side), 0.07 * side)
    elif kind == "phone":
        w, h = rng.uniform(0.12, 0.22) * side, rng.uniform(0.25, 0.45) * side
        stencil.polygon(cv2.boxPoints(((x, y), (w, h), float(rng.uniform(-40, 40)))))
    elif kind == "bar":
        a = rng.uniform(0, np.pi)
        d = np.array([np.cos(a), np.sin(a)]) * 2 * side
        stencil.capsule((x - d[0], y - d[1]), (x + d[0], y + d[1]), rng.uniform(0.04, 0.2) * side)
    elif kind == "shoulder":
        sign = -1 if rng.random() < 0.5 else 1
        rim = cx + sign * rng.uniform(0.25, 0.6) * side
        level = cy + rng.uniform(-0.1, 0.45) * side
        stencil.oval((rim + sign * 0.6 * side, level + 0.8 * side), (0.7, 0.8))
        if rng.random() < 0.5:
            stencil.oval((rim + sign * 0.65 * side, level - 0.1 * side), (0.34, 0.45))
            color = linear((0.15, 0.11, 0.09))
    elif kind == "leaves":
        color = np.array([0.08, 0.16, 0.04], np.float32) * np.float32(rng.uniform(0.4, 1.8))
        for _ in range(int(rng.integers(3, 14))):
            at = (x + rng.normal(0, 0.25) * side, y + rng.normal(0, 0.25) * side)
            stencil.oval(at, (0.09, 0.03), float(rng.uniform(0, 180)))
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = side * rng.uniform(0.08, 0.2) * rng.uniform(0.7, 1.3, 12)
        poly = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
        cv2.fillPoly(stencil.mask, [poly.astype(np.int32)], 255, cv2.LINE_AA)
    blur = float(rng.uniform(0.6, 2.5)) * side / 220
    mask = np.asarray(cv2.GaussianBlur(stencil.mask, (0, 0), max(blur, 0.5)), np.uint8)
    inner = cv2.GaussianBlur(mask, (0, 0), 0.04 * side).astype(np.float32) / 255
    lots = rng.standard_normal((12, 12), dtype=np.float32)
    grain = cv2.resize(lots, (width, height), interpolation=cv2.INTER_CUBIC)
    face = light[int(max(box.y1, 0)) : int(box.y2), int(max(box.x1, 0)) : int(box.x2)].mean()
    strength = np.float32(face / 0.25)
    bright = cv2.GaussianBlur(stencil.shade, (0, 0), max(0.5, 0.012 * side))
    bright *= strength * (np.float32(0.55) + np.float32(0.45) * inner)
    bright *= 1 + np.float32(0.10) * grain
    sleeve, alpha = stencil.sleeve / np.float32(255), mask / np.float32(255)
    cloth = linear(style.cloth_color) * np.float32(0.8)
    for k, (bare, clad) in enumerate(zip(color, cloth, strict=True)):
        paint = np.maximum((bare + (clad - bare) * sleeve) * bright, 0)
        light[..., k] += (paint - light[..., k]) * alpha
    return mask > 127
