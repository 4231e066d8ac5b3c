"""Where the faces are: YuNet through OpenCV's `FaceDetectorYN` (Wu, Peng, Yu 2023, "YuNet: a tiny millisecond-level
face detector"). The ONNX file is named by the user, or fetched when the user says so.

The picture's longer side is scaled down to `side_px`, since the detector was trained on faces of about 10 to 300
pixels; boxes are scaled back. `URL` is that of libfacedetection.train, the detector's home, at a fixed commit; `SHA256`
is that of the file that the tests ran with. OpenCV Zoo hands out other exports, which work by path.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hpe_core.errors import SpecError, only_near
from hpe_core.geometry.crop import Box, Image
from hpe_core.spec.data import FETCH, DetectorSpec
from hpe_core.system.files import write_atomic

URL = (
    "https://github.com/ShiqiYu/libfacedetection.train/raw/dca340aa082c71081a68d17db8e58b33a58a914b/"
    "onnx/yunet_n_dynamic.onnx"
)
SHA256 = "104ee26c71d5c270ce79a6b3dced91c91013260d29a6bf18f9296c5b8c4c2b12"
FETCH_TIMEOUT_S = 30.0
MAX_BYTES = 64 << 20  # YuNet has 0.3 MB; whatever is larger is something else
NMS_IOU, TOP_K = 0.3, 5000  # OpenCV's own defaults


@dataclass(frozen=True)
class Detection:
    """A face's box in picture pixels, which may reach over the edge, and how sure the detector is, in [0, 1].

    The face was found after the picture was turned clockwise by `quarters` of a whole turn.
    """

    box: Box
    score: float
    quarters: int = 0


class FaceDetector:
    """Finds the faces of a picture. Holds OpenCV's network, so it cannot be pickled; a `DetectorSpec` can."""

    def __init__(self, spec: DetectorSpec) -> None:
        """Raises SpecError that names the file, also for an ONNX file of another kind."""
        self.spec = spec
        path = model_path(spec.model)
        model = np.frombuffer(read_model(path), np.uint8)
        nothing, size = np.empty(0, np.uint8), (64, 64)
        try:
            with silent_opencv():  # it says of every network what it lacks
                self._network = cv2.FaceDetectorYN.create("onnx", model, nothing, size, spec.min_score, NMS_IOU, TOP_K)
                self._network.detect(np.zeros((*size, 3), np.uint8))  # an ONNX file of another kind fails only here
        except cv2.error as error:
            said = " ".join(str(error.err).split())[:120]
            raise SpecError(f"the detector's file {path} is no YuNet face detector: {said}") from None

    def __call__(self, image: Image) -> list[Detection]:
        """The faces of an (H, W, 3) uint8 RGB picture, the surest first."""
        height, width = image.shape[:2]
        factor = min(1.0, self.spec.side_px / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor < 1 else image
        self._network.setInputSize(size)
        _, found = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        across, down = width / size[0], height / size[1]
        rows = found if found is not None else np.empty((0, 15))
        faces = [
            Detection(Box(x * across, y * down, (x + w) * across, (y + h) * down), score)
            for x, y, w, h, score in rows[:, [0, 1, 2, 3, 14]].astype(float).tolist()
        ]
        return sorted(faces, key=lambda face: -face.score)


@contextmanager
def silent_opencv() -> Iterator[None]:
    """Without OpenCV's remarks on stderr: the caller says in one sentence what failed."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


@lru_cache(maxsize=2)
def detector_of(spec: DetectorSpec) -> FaceDetector:
    """The detector, made once in a process."""
    return FaceDetector(spec)


def drawn_by(spec: DetectorSpec) -> str:
    """Who draws the boxes, as a protocol names it: `yunet`, the start of its file's SHA-256, and whether they are
    fitted."""
    return f"yunet {model_sha256(spec)[:12]}" + " fitted" * spec.fit


def model_sha256(spec: DetectorSpec) -> str:
    """Of the detector's file. Raises SpecError where it cannot be read."""
    return hashlib.sha256(read_model(model_path(spec.model))).hexdigest()


def model_path(model: str) -> Path:
    """The file of a `model:` key; the word `fetch` is the fetched one, which is downloaded if it is not there yet."""
    return fetched() if model == FETCH else Path(os.path.expanduser(model))


def read_model(path: Path) -> bytes:
    """The file's content. Raises SpecError that names it."""
    if os.path.exists(path) and not path.is_file():
        raise SpecError(f"the detector's file {path} is not a plain file")
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        near = only_near(str(path), [FETCH])
        raise SpecError(f"the detector's file {path} cannot be read: {error.strerror}{near}") from None
    if len(content) > MAX_BYTES:
        raise SpecError(f"the detector's file {path} is no YuNet face detector: it has more than {MAX_BYTES} bytes")
    return content


def cache_folder() -> Path:
    """Where a fetched detector is kept: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "head-pose-distillation"


def fetched(url: str = URL, sha256: str = SHA256, folder: Path | None = None) -> Path:
    """The detector's file in the cache, downloaded unless it is there and right. Raises SpecError."""
    path = (folder or cache_folder()) / url.rpartition("/")[2]
    if _has_bytes(path, sha256):
        return path
    content = _download(url)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SpecError(f"{url} is not the face detector that was tested: its SHA-256 is {found}, not {sha256}")
    try:
        write_atomic(path, content)
    except OSError as error:
        raise SpecError(f"the face detector cannot be kept as {path}: {error.strerror}") from None
    return path


def cached() -> Path | None:
    """The detector's file, if it was fetched before; nothing is downloaded."""
    path = cache_folder() / URL.rpartition("/")[2]
    return path if _has_bytes(path, SHA256) else None


def _has_bytes(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _download(url: str) -> bytes:
    """The whole answer, held in memory: what breaks off never reaches the disk."""
    import http.client
    import urllib.request  # costs what OpenCV and NumPy cost together

    try:
        answer: Any = urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_S)
        with closing(answer):
            content: bytes = answer.read(MAX_BYTES)
            whole = len(content) == int(answer.headers.get("Content-Length", len(content)))
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = str(error).removeprefix("<urlopen error ").removesuffix(">")
        raise SpecError(f"the face detector cannot be fetched from {url}: {said}; give its file by path") from None
    if not whole:
        raise SpecError(f"the face detector's download from {url} broke off; give its file by path")
    return content
