"""What was measured of a network's exported files: a part of the publish stage's result."""

from dataclasses import dataclass

import numpy as np

from hpe_core.detection.fit import DetectorFit

APART_DEG = 1.0  # two runtimes run different networks; rounding alone leaves a tenth or two


@dataclass(frozen=True)
class Parity:
    """Largest difference between the network and a file of it over some crops, degrees, by angle."""

    angles: dict[str, float]
    spread: dict[str, float]
    crops: int
    allowed: float  # of the angles
    landmarks_px: float | None = None  # of a network that answers them; not more than ten times that

    @property
    def worst(self) -> float:
        """Of the angles. A NaN stays a NaN."""
        return float(np.max(list(self.angles.values())))


OLDEST_RUNTIME = {18: "1.14.1", 19: "1.16.3", 20: "1.17.3", 21: "1.18.1"}  # ONNX Runtime, by opset, as tried


@dataclass(frozen=True)
class NetworkFile:
    """One file that computes what the network computes."""

    bytes: int
    parity: Parity


@dataclass(frozen=True)
class TracedNetwork:
    """The network in the two files that come from one trace: ONNX, and the program for PyTorch."""

    onnx: NetworkFile
    program: NetworkFile
    opset: int  # of the ONNX file
    parameters: int
    detector_fit: DetectorFit | None  # None where nobody knows it

    @property
    def oldest_runtime(self) -> str:
        """The oldest release of ONNX Runtime that was seen to load a file of this opset."""
        return OLDEST_RUNTIME[self.opset]


@dataclass(frozen=True)
class TimmFolder:
    """The network as a timm model: with the predicting head or the backbone alone."""

    architecture: str
    head: bool


@dataclass(frozen=True)
class Int8Score:
    """The int8 file against the float file on labelled faces, degrees."""

    faces: int
    float_mae: float
    mae: float
    cost_deg: float  # mae - float_mae
    margin_deg: float | None  # half the 95 % interval of the cost, paired over faces; None for a single person
    moved_deg: float  # mean difference of the two files' angles


@dataclass(frozen=True)
class Int8:
    bytes: int
    calibrated_on: int  # faces
    score: Int8Score | None  # None without test faces
    openvino_deg: float | None = None  # mean difference between OpenVINO's answers and ONNX Runtime's; None: not asked

    @property
    def openvino_differs(self) -> bool:
        """Whether OpenVINO reads the file as another network."""
        return self.openvino_deg is not None and not self.openvino_deg <= APART_DEG


@dataclass(frozen=True)
class Exported:
    """What was measured of the exported files. `latency_ms`: {runtime: {'batch 1': ms}}."""

    traced: TracedNetwork
    timm: TimmFolder
    int8: Int8 | None
    latency_ms: dict[str, dict[str, float]]
    cpu: str  # the processor of the latencies; '' where the system does not tell
