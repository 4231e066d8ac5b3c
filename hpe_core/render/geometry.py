"""Normals, smoothing and the neck: what every figure's points go through."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hpe_core.render.anatomy import anatomy, smoothstep

Float = NDArray[np.float32]
NECK_PIVOT = np.array([0.0, 112.0, 28.0])


@lru_cache(maxsize=1)
def _around() -> tuple[NDArray[np.int64], csr_matrix, csr_matrix]:
    """Triangles in the file's own vertices; (V, T) sums the triangles round a vertex; (V, V) the mean of neighbours."""
    shared = anatomy()
    origin = shared.origin[shared.triangles]
    count, total = len(shared.points), len(origin)
    ones, rows = np.ones(3 * total, np.float32), origin.T.ravel()
    around = csr_matrix((ones, (rows, np.tile(np.arange(total), 3))), (count, total))
    a, b = origin.ravel(), np.roll(origin, 1, 1).ravel()
    near = csr_matrix((np.ones(2 * len(a), np.float32), (np.r_[a, b], np.r_[b, a])), (count, count))
    near = near + csr_matrix((np.full(count, 3, np.float32), (np.arange(count), np.arange(count))), (count, count))
    near = csr_matrix(near.multiply(1 / near.sum(1)))
    return origin, around[shared.origin], near[shared.origin].astype(np.float32)


def normals_of(points: Float) -> Float:
    """(V, 3) outward unit normals of the shared mesh at these points (V, 3)."""
    triangles, around, _ = _around()
    a = points[triangles[:, 0]]
    u, v = points[triangles[:, 1]] - a, points[triangles[:, 2]] - a
    flat = np.empty_like(u)
    flat[:, 0] = u[:, 1] * v[:, 2] - u[:, 2] * v[:, 1]
    flat[:, 1] = u[:, 2] * v[:, 0] - u[:, 0] * v[:, 2]
    flat[:, 2] = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    return unit(around @ flat)


def dot(a: Float, b: Float) -> Float:
    """(N,) of two (N, 3)."""
    return np.einsum("ij,ij->i", a, b)


def unit(vectors: Float) -> Float:
    """(N, 3) vectors at length one."""
    return vectors / (np.sqrt(dot(vectors, vectors)) + np.float32(1e-9))[:, None]


def spread(values: NDArray[np.float32], times: int = 1) -> Float:
    """Per-vertex values, each replaced by a mean of it and its neighbours."""
    near = _around()[2]
    for _ in range(times):
        values = near @ values
    return values


@lru_cache(maxsize=1)
def _marked() -> csr_matrix:
    """(68, V) the mean round each landmark, over about a centimetre: at the rim of a lid the skin's own normal says
    little."""
    shared, near = anatomy(), _around()[2]
    rows = np.repeat(np.arange(68), 3)
    at = csr_matrix((shared.weights.ravel(), (rows, shared.landmarks.ravel())), (68, len(shared.points)))
    return at @ near @ near @ near @ near


def landmark_normals(normals: Float) -> Float:
    """(68, 3) unit normals of the skin round the landmarks, from those of all points (V, 3)."""
    return unit(_marked() @ normals)


def body_share(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """(N,) how far points follow the body and not the head: none above a plane from the chin to the nape."""
    return smoothstep(62, 165, points[:, 1] + 0.45 * points[:, 2])
