"""What AFLW2000 and 300W-LP share, which one paper published: pose and 68 landmarks in MATLAB files, and no boxes."""

from hpe_core.datasets.files import Archive
from hpe_core.detection.fit import DetectorFit
from hpe_core.spec.data import DatasetSpec

PAPER = "X. Zhu, Z. Lei, X. Liu, H. Shi, S. Z. Li, Face Alignment Across Large Poses: A 3D Solution, CVPR 2016"
MEASURED_SCALE = 1.2  # the key landmark_box_scale at which the fit was measured


class LandmarkArchive(Archive):
    """A face's box is that of its landmarks, grown about its centre by the key `landmark_box_scale`."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__(spec)
        grown = spec.landmark_box_scale / MEASURED_SCALE
        self.own_boxes = f"landmarks x {spec.landmark_box_scale:g}"
        self.detector_fit = DetectorFit(1.25 * grown, 0.87 * grown, 0.13)
