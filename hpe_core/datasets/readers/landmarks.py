"""What AFLW2000, 300W-LP and 300W share: 68 landmarks and no boxes. One paper published the first two."""

from hpe_core.datasets.files import Archive
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.geometry.crop import BOX_RULE

PAPER = "X. Zhu, Z. Lei, X. Liu, H. Shi, S. Z. Li, Face Alignment Across Large Poses: A 3D Solution, CVPR 2016"


class LandmarkArchive(Archive):
    """A face's box is that of its landmarks (`Box.of_face`)."""

    own_boxes = BOX_RULE
    detector_fit = TO_LANDMARKS
