"""Picture and boxes -> poses, from a saved network (torch) or an ONNX file (onnxruntime, OpenCV and NumPy alone).

    angles, spread = HeadPosePredictor.load().predict(image_rgb, [(x1, y1, x2, y2)])                the shipped student
    angles, spread = HeadPosePredictor.load("student.onnx").predict(image_rgb, [(x1, y1, x2, y2)])

Both kinds carry their crop contract (what the window shows of a box, and how a detector's box becomes one that the
network was taught with), and the pixels take the way of training and evaluation: the canonical crop with its margin,
then its central window. Torch is imported only for a saved network.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpe_core.detection.fit import DetectorFit
from hpe_core.errors import SpecError, check
from hpe_core.geometry.crop import Box, FaceCrop, Image, canonical_crop, fault_of, window
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.learning.calibration import Calibration
from hpe_core.shipped import STUDENT_FILE, model_path
from hpe_core.spec.data import CropSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.packages import missing

CONTRACT_KEY, CONTRACT_VERSION = "hpe", 1  # the entry of an ONNX file's metadata
FIT_NOTE, CALIBRATION_NOTE = "detector_fit", "calibration"  # of a saved network, and in the contract
INPUT, OUTPUTS, MARKS_OUTPUT = "images", ("angles", "spread"), "landmarks"  # the last of a network that learnt them
BATCH = 64


class Poses(NamedTuple):
    """Degrees, (M, 3) float32 each: (pitch, yaw, roll), and a standard deviation of each: that of the predicted
    distribution, made to hold on validation faces where the network carries a calibration."""

    angles: NDArray[np.float32]
    spread: NDArray[np.float32]


class HeadPosePredictor:
    """Poses of the faces in a picture. Made by `load`."""

    crop: CropSpec  # what the network's window shows of a box
    detector_fit: DetectorFit | None  # makes YuNet's boxes such as the network learnt; None: unknown
    calibration: Calibration | None  # of the spreads, which are multiplied already; None: they are the head's own
    convention: str  # of the angles, in one line
    has_landmarks: bool  # whether `landmarks` can be asked

    def __init__(self, runner: "_OnnxRunner | _TorchRunner") -> None:
        self._runner, self.convention = runner, CONVENTION  # a network of another one is not loaded
        self.has_landmarks = runner.has_landmarks
        self.crop, self.detector_fit, self.calibration = runner.crop, runner.detector_fit, runner.calibration

    @classmethod
    def load(cls, path: str | Path = STUDENT_FILE, *, threads: int = 0) -> "HeadPosePredictor":
        """A folder written by `checkpoint.save_net`, a `.onnx` file written by `workflows.export.onnx_file`, or one of
        the networks that this package ships (`shipped`, `shipped/teacher`); without a path, the student of these.

        `threads` limits the CPU threads of ONNX Runtime (0: its own choice); torch keeps its own setting.
        Raises SpecError that names the path.
        """
        path = model_path(path)
        return cls(_OnnxRunner(path, threads) if path.suffix == ".onnx" else _TorchRunner(path))

    def predict(self, image: Image, boxes: Sequence[Box] | ArrayLike, *, detected: bool = False) -> Poses:
        """Poses of the faces in `boxes` (Box values or (M, 4) x1, y1, x2, y2 pixels) of an RGB picture.

        Boxes are as the training data has them, or, with `detected`, as YuNet draws them: those are fitted first.
        Raises ValueError for a picture that is not (H, W, 3) uint8, and for a box that is none or that the picture does
        not show once it is fitted, by the rule of the shards (`fault_of`).
        """
        crops = self._crops(image, boxes, detected)
        return self.predict_windows(self._windows(crops))

    def landmarks(
        self, image: Image, boxes: Sequence[Box] | ArrayLike, *, detected: bool = False
    ) -> NDArray[np.float32]:
        """(M, 68, 3) of the same faces: x, y in pixels of the picture, and the probability that the point is seen.

        Raises ValueError as `predict` does, and for a network that learnt no landmarks.
        """
        if not self.has_landmarks:
            raise ValueError("this network answers no landmarks: load one that learnt them (net.landmarks)")
        crops = self._crops(image, boxes, detected)
        if not crops:
            return np.zeros((0, LANDMARKS, 3), np.float32)
        said = self._runner.landmarks(np.ascontiguousarray(self._windows(crops)))
        scales = np.array([[crop.scale_x, crop.scale_y, 1] for crop in crops], np.float32)[:, None]
        middles = np.array([[*crop.box.center, 0] for crop in crops], np.float32)[:, None]
        return said * scales + middles

    def _crops(self, image: Image, boxes: Sequence[Box] | ArrayLike, detected: bool) -> list[FaceCrop]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"a picture must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        fitted = [self.fitted(box, detected) for box in as_boxes(boxes)]
        for box in fitted:
            fault = fault_of(box, image.shape[1], image.shape[0], self.crop.box_scale)
            if fault is not None:
                raise ValueError(fault[1])
        return [canonical_crop(image, box, self.crop) for box in fitted]

    def fitted(self, box: Box, detected: bool) -> Box:
        """A box such as the network was taught with; `detected`: YuNet drew it."""
        return self.detector_fit.of(box) if detected and self.detector_fit is not None else box

    def _windows(self, crops: Sequence[FaceCrop]) -> Image:
        side = self.crop.stored_size
        stacked = np.stack([crop.pixels for crop in crops]) if crops else np.zeros((0, side, side, 3), np.uint8)
        return np.asarray(window(stacked, self.crop.size), np.uint8)

    def predict_windows(self, windows_BHWC: Image) -> Poses:
        """Poses of windows that are cut already: (B, size, size, 3) uint8 RGB. Raises ValueError for another shape."""
        size = self.crop.size
        if windows_BHWC.dtype != np.uint8 or windows_BHWC.shape[1:] != (size, size, 3):
            given = f"{windows_BHWC.shape} {windows_BHWC.dtype}"
            raise ValueError(f"windows must be (B, {size}, {size}, 3) uint8, got {given}")
        starts = range(0, len(windows_BHWC), BATCH)
        parts = [self._runner(np.ascontiguousarray(windows_BHWC[i : i + BATCH])) for i in starts]
        if not parts:
            return Poses(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
        return Poses(np.concatenate([p.angles for p in parts]), np.concatenate([p.spread for p in parts]))


def as_boxes(boxes: Sequence[Box] | ArrayLike) -> list[Box]:
    """Box values or (M, 4) corners -> Box values; none for an empty array. Raises ValueError for another shape."""
    if isinstance(boxes, Sequence) and all(isinstance(box, Box) for box in boxes):
        return [box for box in boxes if isinstance(box, Box)]
    corners = np.asarray(boxes, dtype=np.float64)
    if corners.shape[:1] == (0,):
        return []
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"boxes must be (M, 4): x1, y1, x2, y2; got an array of shape {corners.shape}")
    return [Box(*map(float, row)) for row in corners]


def contract_of(crop: CropSpec, convention: str, notes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """The metadata of an ONNX file that makes it a head-pose network of this project, with what a saved network's notes
    say of detected boxes and of spreads."""
    contract = {"version": CONTRACT_VERSION, "convention": convention, "crop": to_dict(crop)}
    contract |= {name: notes[name] for name in (FIT_NOTE, CALIBRATION_NOTE) if name in notes}
    return {CONTRACT_KEY: json.dumps(contract, sort_keys=True)}


def noted_fit(notes: Mapping[str, Any]) -> DetectorFit | None:
    """What a saved network's notes or a contract say about detected boxes."""
    return build(DetectorFit, notes[FIT_NOTE]) if FIT_NOTE in notes else None


def noted_calibration(notes: Mapping[str, Any]) -> Calibration | None:
    """What a saved network's notes or a contract say about its spreads."""
    return build(Calibration, notes[CALIBRATION_NOTE]) if CALIBRATION_NOTE in notes else None


def open_session(path: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session on so many CPU threads (0: its own choice). Raises SpecError or UserError."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing(error) from None
    check(os.path.isfile(path), f"{path} is no file: an ONNX file is needed")  # who opens a pipe waits for ever
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        said = str(error).splitlines()[0]
        raise SpecError(f"{path} cannot be loaded as an ONNX file: {said.rpartition(' failed:')[2]}") from None


class _OnnxRunner:
    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_session(path, threads)
        stored = self._session.get_modelmeta().custom_metadata_map.get(CONTRACT_KEY)
        if stored is None:
            raise SpecError(f"{path} carries no crop contract: this project did not write it")
        try:
            contract = json.loads(stored)
            version, convention = contract["version"], contract["convention"]
        except (ValueError, TypeError, LookupError):
            raise SpecError(f"{path} carries a crop contract that cannot be read") from None
        if version != CONTRACT_VERSION:
            raise SpecError(f"{path} has contract version {version}; this code reads {CONTRACT_VERSION}")
        if convention != CONVENTION:
            raise SpecError(f"{path} was exported with another angle convention: {convention}")
        try:
            self.crop, self.detector_fit = build(CropSpec, contract.get("crop")), noted_fit(contract)
            self.calibration = noted_calibration(contract)
        except SpecError as error:
            raise SpecError(f"{path} carries a crop contract that cannot be used: {error}") from None
        self.has_landmarks = MARKS_OUTPUT in [entry.name for entry in self._session.get_outputs()]

    def __call__(self, windows_BHWC: Image) -> Poses:
        return Poses(*self._session.run(list(OUTPUTS), {INPUT: windows_BHWC}))

    def landmarks(self, windows_BHWC: Image) -> NDArray[np.float32]:
        """(B, 68, 3): window pixels from its centre, and the probability that the point is seen."""
        (marks,) = self._session.run([MARKS_OUTPUT], {INPUT: windows_BHWC})
        return np.asarray(marks, np.float32)


class _TorchRunner:
    def __init__(self, folder: Path) -> None:
        from hpe_core.networks.checkpoint import load_net

        saved = load_net(folder)
        self._net, self.crop, self.detector_fit = saved.net, saved.crop, noted_fit(saved.notes)
        self.has_landmarks = saved.net.spec.landmarks
        self.calibration = noted_calibration(saved.notes)

    def __call__(self, windows_BHWC: Image) -> Poses:
        import torch

        with torch.inference_mode():
            answers, form = self._net.predict(torch.from_numpy(windows_BHWC)), self._net.form
            spread = form.spread(answers).numpy()
        if self.calibration is not None:
            spread = self.calibration.standard(spread).astype(np.float32)
        return Poses(form.decode(answers).numpy(), spread)

    def landmarks(self, windows_BHWC: Image) -> NDArray[np.float32]:
        """(B, 68, 3): window pixels from its centre, and the probability that the point is seen."""
        import torch

        with torch.inference_mode():
            return self._net.landmarks(torch.from_numpy(windows_BHWC)).marks_BL3.numpy()
