"""What the benchmarks share: an archive of rendered heads, shards of its faces, and one local Ray cluster.

The archive has the form of AFLW2000: JPEG pictures of 450 px, each with a .mat file. A few distinct heads stand in it
under many names, since the cost of decoding a file does not depend on its neighbours.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from hpe_core.data.rows import write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import load_directly
from hpe_core.errors import say
from hpe_core.geometry.crop import Image, encoded
from hpe_core.render.scene import RenderedHead, render_head
from hpe_core.spec.cluster import ClusterSpec
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from workflows.engine.cluster.connection import connected

DISTINCT = 24  # heads that are rendered for the archive; the rest are copies of their files
PICTURE_PX, QUALITY = 450, 95
BATCH = 64
CROP = CropSpec(112, 15)
CLUSTER = ClusterSpec(address="local", local_cpus=4)
Encoding = Literal["raw", "jpeg"]


class Lab:
    """Makes the archive and starts the cluster when a benchmark first asks for them; `stack` stops the cluster."""

    def __init__(self, folder: Path, faces: int, repeat: int, stack: ExitStack) -> None:
        self.folder, self.faces, self.repeat = folder, faces, repeat
        self.few = (repeat + 1) // 2  # repeats of what takes many seconds: three of five
        self._stack = stack
        self._cluster_s: float | None = None

    @cached_property
    def heads(self) -> list[RenderedHead]:
        return [render_head(3, i, size=PICTURE_PX, heads_per_person=6) for i in range(min(self.faces, DISTINCT))]

    @cached_property
    def archive(self) -> Path:
        """`faces` pictures with their .mat files, as AFLW2000 stores them."""
        import scipy.io

        root = self.folder / "archive"
        root.mkdir()
        jpegs = [jpeg(head.image) for head in self.heads]
        for i in range(self.faces):
            head = self.heads[i % len(self.heads)]
            (root / f"image{i:05d}.jpg").write_bytes(jpegs[i % len(jpegs)])
            points = np.vstack([head.landmarks.T, np.zeros((1, len(head.landmarks)))]).astype(np.float32)
            pose = np.array([[*np.radians(head.pose), 0.0, 0.0, 0.0, 1.0]], np.float32)
            scipy.io.savemat(root / f"image{i:05d}.mat", {"Pose_Para": pose, "pt3d_68": points})
        return root

    @property
    def pictures(self) -> list[Path]:
        return sorted(self.archive.glob("*.jpg"))

    def data(self, crop: CropSpec = CROP, encoding: Encoding = "raw") -> DataSpec:
        """The archive as the shards stage is given it: eight parts or so."""
        return data_of(self.archive, max(1, self.faces // 8), crop, encoding)

    def rows(self, crop: CropSpec = CROP) -> list[FaceRow]:
        """Every face of the archive, loaded and cropped, in the order of `pictures`."""
        source = open_source(self.data(crop).datasets["heads"])
        return [face for face in load_directly(source, crop, sorted(source.refs())) if isinstance(face, FaceRow)]

    def scratch(self) -> Path:
        """A fresh, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def cluster(self) -> float:
        """Starts the cluster unless it runs already, and returns the seconds that its start took."""
        if self._cluster_s is None:
            began = time.perf_counter()
            line = self._stack.enter_context(connected(CLUSTER))
            self._cluster_s = time.perf_counter() - began
            say(f"  {line}, started in {self._cluster_s:.1f} s")
        return self._cluster_s


def data_of(root: Path, rows_per_shard: int, crop: CropSpec = CROP, encoding: Encoding = "raw") -> DataSpec:
    heads = DatasetSpec("aflw2000", str(root), val=0.125, test=0.0)
    return DataSpec({"heads": heads}, ("heads",), (), crop, encoding=encoding, rows_per_shard=rows_per_shard)


def shards_in(folder: Path, faces: Sequence[FaceRow], crop: CropSpec = CROP, encoding: Encoding = "raw") -> list[Path]:
    """Writes the faces into shards of 512 rows; returns their files."""
    starts = range(0, len(faces), 512)
    files = [folder / f"part-{part:05d}.parquet" for part in range(len(starts))]
    for file, start in zip(files, starts, strict=True):
        write_shard(file, faces[start : start + 512], crop, encoding)
    return files


def jpeg(image: Image) -> bytes:
    return encoded(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
