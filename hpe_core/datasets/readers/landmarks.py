"""What AFLW2000 and 300W-LP share, which one paper published: pose and 68 landmarks in MATLAB files, and no boxes."""

from hpe_core.datasets.files import Archive
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.geometry.crop import BOX_RULE

PAPER = "X. Zhu, Z. Lei, X. Liu, H. Shi, S. Z. Li, Face Alignment Across Large Poses: A 3D Solution, CVPR 2016"


class LandmarkArchive(Archive):
    """A face's box is that of its landmarks (`Box.of_face`)."""

    own_boxes = BOX_RULE
    detector_fit = TO_LANDMARKS
