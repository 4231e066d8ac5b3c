"""What is behind a head: skies and trees, rooms, walls, streets at night, other people, out of focus as a lens has it.

Sizes follow a power law, as those of things do, so the spectrum falls as that of photographs.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float32]
N = 128  # the plates are painted at this size
WARM = np.array([0.06, 0.0, -0.06])


def draw_background(rng: np.random.Generator, side: int) -> Float:
    """(side, side, 3) linear light of about 0.05 to 1."""
    kinds = (_room, _wall, _foliage, _sky, _street, _clutter, _bokeh, _people)
    plate = kinds[int(rng.choice(len(kinds), p=[0.22, 0.14, 0.15, 0.10, 0.10, 0.14, 0.06, 0.09]))](rng)
    texture = 1 + rng.uniform(0.03, 0.15) * _fractal(rng, rng.uniform(0.9, 1.5))
    tilt = rng.uniform(-0.25, 0.25)
    across = 1 + tilt * np.linspace(-1, 1, N, dtype=np.float32)
    for k in range(3):
        plate[..., k] *= texture
        plate[..., k] *= across
    blur = float(rng.choice([0.0, 0.7, 1.6, 3.5], p=[0.2, 0.3, 0.3, 0.2]) * rng.uniform(0.6, 1.4))
    if blur > 0.3:
        plate = cv2.GaussianBlur(plate, (0, 0), blur)
    zoom = rng.uniform(0.5, 1.0)  # a part of it
    w = int(N * zoom)
    y, x = (int(v) for v in rng.integers(0, N - w + 1, 2))
    part = plate[y : y + w, x : x + w]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    out = cv2.resize(np.ascontiguousarray(part), (side, side), interpolation=cv2.INTER_LINEAR)
    np.clip(out, 0.002, 3.0, out=out)
    out *= np.float32(np.exp(rng.normal(-0.4, 0.6)))
    return out


def _color(rng: np.random.Generator, low: float = 0.02, high: float = 0.9, colorful: float = 0.5) -> Float:
    """A surface's colour, linear; most things are grey, more or less."""
    level = np.exp(rng.uniform(np.log(low), np.log(high)))
    tint = np.exp(rng.normal(0, colorful * rng.random() ** 1.5, 3) + WARM)
    return np.minimum(np.maximum(level * tint / (tint.sum() / 3), 0.005), 1.2).astype(np.float32)


def _fractal(rng: np.random.Generator, fall: float) -> Float:
    """(N, N) noise of unit deviation whose amplitude falls as a power of frequency."""
    out = np.zeros((N, N), np.float32)
    for octave in range(6):
        cells = 4 * 2**octave
        field = rng.standard_normal((min(cells, N), min(cells, N)), dtype=np.float32)
        field = np.asarray(cv2.resize(field, (N, N), interpolation=cv2.INTER_LINEAR), np.float32)
        field *= np.float32(2.0 ** (-fall * octave))
        out += field
    out /= out.std() + np.float32(1e-6)
    return out


def _plain(color: Float) -> Float:
    return np.ascontiguousarray(np.broadcast_to(color, (N, N, 3)), np.float32)


def _ramp(a: Float, b: Float, angle: float) -> Float:
    line = np.linspace(-1, 1, N).astype(np.float32)
    t = np.clip(0.5 + 0.5 * (line * np.sin(angle) + (line * np.cos(angle))[:, None]), 0, 1)
    out = np.empty((N, N, 3), np.float32)
    for k in range(3):
        out[..., k] = a[k] + (b[k] - a[k]) * t
    return out


def _size(rng: np.random.Generator, low: float, high: float) -> float:
    """Sizes of a power law."""
    u = rng.random()
    return float(1 / ((1 - u) / low + u / high))


def _fill(plate: Float, corners: ArrayLike, color: Float) -> None:
    sixteenths = np.rint(np.asarray(corners) * 16).astype(np.int32)
    cv2.fillPoly(plate, [sixteenths], color.tolist(), cv2.LINE_AA, 4)


def _box(plate: Float, x: float, y: float, w: float, h: float, color: Float, lean: float = 0.0) -> None:
    sunk = lean * w
    _fill(plate, [(x, y), (x + w, y + sunk), (x + w, y + h + sunk), (x, y + h)], color)


def _disc(plate: Float, at: tuple[int, int], radius: int, color: Float) -> None:
    cv2.circle(plate, at, radius, color.tolist(), -1, cv2.LINE_AA)


def _oval(plate: Float, x: float, y: float, wide: float, high: float, color: Float) -> None:
    cv2.ellipse(plate, (int(x), int(y)), (int(wide), int(high)), 0, 0, 360, color.tolist(), -1, cv2.LINE_AA)


def _wall(rng: np.random.Generator) -> Float:
    c = _color(rng, 0.05, 0.9, 0.4)
    plate = _ramp(c, c * np.float32(rng.uniform(0.4, 0.95)), rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.3:  # boards, tiles, bricks
        pitch = rng.uniform(8, 30)
        for x in np.arange(rng.uniform(0, pitch), N, pitch):
            _box(plate, x, 0, 1.0, N, c * 0.5)
        if rng.random() < 0.5:
            for y in np.arange(rng.uniform(0, pitch), N, pitch * rng.uniform(0.4, 1)):
                _box(plate, 0, y, N, 0.8, c * 0.55)
    elif rng.random() < 0.3:  # folds of a curtain
        phase = np.cumsum(np.abs(rng.normal(1, 0.5, N))) * rng.uniform(0.15, 0.5)
        plate *= (1 + 0.35 * np.sin(phase).astype(np.float32))[None, :, None]
    for _ in range(int(rng.integers(0, 3))):
        x, y, w, h = rng.uniform(-20, N), rng.uniform(-20, 80), _size(rng, 10, 60), _size(rng, 10, 60)
        _box(plate, x, y, w, h, _color(rng))
        _box(plate, x + 1.5, y + 1.5, w - 3, h - 3, _color(rng))
    return plate


def _room(rng: np.random.Generator) -> Float:
    c = _color(rng, 0.08, 0.8, 0.3)
    plate = _ramp(c, c * np.float32(rng.uniform(0.3, 0.9)), rng.uniform(-0.5, 0.5))
    lean = rng.normal(0, 0.08)
    floor = rng.uniform(75, 130)
    _box(plate, -10, floor, N + 20, N, _color(rng, 0.03, 0.5), lean)
    if rng.random() < 0.55:  # a window
        x, y, w, h = rng.uniform(-20, N - 20), rng.uniform(-15, 30), rng.uniform(20, 60), rng.uniform(30, 70)
        _box(plate, x - 2, y - 2, w + 4, h + 4, _color(rng, 0.2, 0.9), lean)
        _box(plate, x, y, w, h, _color(rng, 0.8, 2.5, 0.2) * 1.5, lean)
        _box(plate, x + w / 2 - 1, y, 2, h, c, lean)
    if rng.random() < 0.4:  # shelves with books
        x, y, w = rng.uniform(-20, N - 30), rng.uniform(-20, 40), rng.uniform(30, 70)
        for row in range(int(rng.integers(2, 5))):
            _box(plate, x, y + 20 * row, w, 20, _color(rng, 0.02, 0.15), lean)
            at = x
            while at < x + w - 2:
                thick = rng.uniform(1.5, 5)
                high = rng.uniform(11, 18)
                _box(plate, at, y + 20 * row + 19 - high, thick - 0.5, high, _color(rng, 0.03, 0.8, 0.8), lean)
                at += thick
    for _ in range(int(rng.integers(2, 9))):
        w, h = _size(rng, 4, 60), _size(rng, 4, 60)
        _box(plate, rng.uniform(-20, N), rng.uniform(-10, N), w, h, _color(rng), lean * (rng.random() < 0.5))
    for _ in range(int(rng.integers(0, 4))):  # lamps
        spot = (int(rng.uniform(0, N)), int(rng.uniform(0, 50)))
        _disc(plate, spot, int(_size(rng, 1.5, 7)), _color(rng, 1.5, 3.0, 0.2))
    return plate


def _foliage(rng: np.random.Generator) -> Float:
    green = np.array([0.10, 0.17, 0.05], np.float32) * np.exp(rng.normal(0, 0.3, 3)).astype(np.float32)
    if rng.random() < 0.2:
        green = green[[1, 0, 2]] * np.array([1.2, 1.0, 0.7], np.float32)  # autumn
    detail = _fractal(rng, rng.uniform(0.3, 0.8))
    patches = _fractal(rng, 1.2)
    plate = green * np.exp(0.75 * detail + 0.5 * patches)[..., None]
    higher = np.linspace(0.9, -0.9, N, dtype=np.float32)[:, None] * rng.uniform(0, 2)
    gaps = np.clip((patches + 0.5 * detail + higher - rng.uniform(0.6, 2.4)) * 3, 0, 1)
    plate += (_color(rng, 0.7, 1.6, 0.2) * np.array([0.9, 1.0, 1.15], np.float32) - plate) * gaps[..., None]
    if rng.random() < 0.4:
        _box(plate, -5, rng.uniform(80, 125), N + 10, N, _color(rng, 0.1, 0.5), rng.normal(0, 0.05))
    for _ in range(int(rng.integers(0, 4))):  # trunks
        x = rng.uniform(0, N)
        trunk = [(x, -5), (x + _size(rng, 2, 9), -5), (x + rng.normal(4, 4), N + 5), (x - 3, N + 5)]
        _fill(plate, trunk, _color(rng, 0.02, 0.12))
    return np.asarray(plate, np.float32)


def _sky(rng: np.random.Generator) -> Float:
    blue = np.array([0.28, 0.45, 0.80], np.float32) * np.float32(rng.uniform(0.6, 1.3))
    pale = np.array([0.75, 0.82, 0.9], np.float32) * np.float32(rng.uniform(0.7, 1.2))
    if rng.random() < 0.2:
        blue, pale = np.array([0.3, 0.25, 0.35], np.float32), np.array([1.0, 0.6, 0.35], np.float32)
    plate = _ramp(blue, pale, 0.0)
    clouds = np.clip(_fractal(rng, 1.1) * 0.6 + rng.uniform(-0.8, 0.8), 0, 1)[..., None]
    plate += (np.float32(rng.uniform(0.8, 1.3)) - plate) * clouds * 0.8
    line = rng.uniform(50, 140)
    ridge = line + np.cumsum(rng.normal(0, 1.2, N))
    land = np.stack([np.arange(N), ridge], 1)
    _fill(plate, np.concatenate([land, [[N, N], [0, N]]]), _color(rng, 0.03, 0.3))
    if rng.random() < 0.4:
        for _ in range(int(rng.integers(2, 9))):
            x, y, w = rng.uniform(-10, N), line - rng.uniform(0, 45), rng.uniform(8, 30)
            _box(plate, x, y, w, 90, _color(rng, 0.05, 0.5, 0.3))
    return plate


def _street(rng: np.random.Generator) -> Float:
    plate = _ramp(_color(rng, 0.4, 1.0, 0.2), _color(rng, 0.08, 0.4, 0.2), 0.0)
    lean = rng.normal(0, 0.15)
    x = -10.0
    while x < N:
        w = rng.uniform(15, 50)
        wall, top = _color(rng, 0.05, 0.6, 0.4), rng.uniform(-20, 40)
        _box(plate, x, top, w, N, wall, lean)
        rows, cols = rng.uniform(7, 16), rng.uniform(5, 12)
        pane = _color(rng, 0.02, 0.9, 0.3)
        for yy in np.arange(top + 4, 90, rows).tolist():
            for xx in np.arange(x + 2, x + w - cols * 0.5, cols).tolist():
                _box(plate, xx, yy, cols * 0.55, rows * 0.6, pane * np.float32(rng.uniform(0.6, 1.5)), lean)
        x += w
    _box(plate, -10, rng.uniform(85, 115), N + 20, N, _color(rng, 0.06, 0.3, 0.1), lean / 2)
    for _ in range(int(rng.integers(0, 6))):
        x, y, w, h = rng.uniform(-10, N), rng.uniform(70, 110), _size(rng, 6, 40), _size(rng, 6, 20)
        _box(plate, x, y, w, h, _color(rng, 0.02, 0.8, 1.0))
    return plate


def _clutter(rng: np.random.Generator) -> Float:
    """Things of all sizes that hide each other (dead leaves)."""
    plate = _plain(_color(rng))
    palette = [_color(rng, 0.02, 0.9, 0.7) for _ in range(6)]
    for _ in range(int(rng.integers(20, 70))):
        size = _size(rng, 2.5, 60)
        at = rng.uniform(-10, N + 10, 2)
        color = palette[int(rng.integers(6))] * np.float32(np.exp(rng.normal(0, 0.3)))
        count = (4, 4, 5, 12)[int(rng.integers(4))]
        angle = rng.uniform(0, 2 * np.pi) + np.arange(count) * 2 * np.pi / count
        shape = np.stack([np.cos(angle), np.sin(angle) * rng.uniform(0.3, 1)], 1) * size
        _fill(plate, at + shape, color)
    return plate


def _bokeh(rng: np.random.Generator) -> Float:
    plate = _plain(_color(rng, 0.01, 0.08, 0.5))
    radius = rng.uniform(2, 9)
    for _ in range(int(rng.integers(10, 60))):
        layer = np.zeros_like(plate)
        at = (int(rng.uniform(0, N)), int(rng.uniform(0, N)))
        _disc(layer, at, max(1, int(radius * rng.uniform(0.7, 1.3))), _color(rng, 0.1, 1.2, 1.2))
        plate += layer
    return cv2.GaussianBlur(plate, (0, 0), 0.8)


def _people(rng: np.random.Generator) -> Float:
    """Others, out of focus: shoulders, a face, hair."""
    plate = [_room, _street, _foliage, _wall][int(rng.integers(4))](rng)
    plate = cv2.GaussianBlur(plate, (0, 0), 2.0)
    for _ in range(int(rng.integers(1, 5))):
        x, y, r = rng.uniform(0, N), rng.uniform(25, 100), rng.uniform(7, 24)
        skin = np.array([0.60, 0.36, 0.25], np.float32) * np.float32(np.exp(rng.uniform(-1.3, 0.2)))
        cloth, hair = _color(rng, 0.02, 0.8, 0.7), _color(rng, 0.01, 0.15, 0.3)
        body = [[-2.3, 5], [-2.1, 2.2], [-1.2, 1.55], [1.2, 1.55], [2.1, 2.2], [2.3, 5]]
        _fill(plate, np.array([x, y]) + np.array(body) * r, cloth)
        _box(plate, x - 0.5 * r, y + 0.5 * r, r, 1.2 * r, skin * 0.7)
        turned = rng.normal(0, 0.3) * r
        _oval(plate, x, y - 0.15 * r, 0.95 * r, 1.2 * r, hair)
        _oval(plate, x + turned, y + 0.15 * r, 0.75 * r, 0.98 * r, skin)
        _oval(plate, x + turned, y, 0.5 * r, max(1, 0.12 * r), skin * 0.5)
    return cv2.GaussianBlur(plate, (0, 0), float(rng.uniform(1.0, 3.0)))
