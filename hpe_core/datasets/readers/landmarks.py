"""What AFLW2000, 300W-LP and 300W share: a file of 68 landmarks beside each picture, and no boxes. One paper published
the first two."""

from pathlib import Path
from typing import ClassVar

from hpe_core.datasets import files
from hpe_core.datasets.base import FaceRef, Rejected
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.geometry.crop import BOX_RULE

PAPER = "X. Zhu, Z. Lei, X. Liu, H. Shi, S. Z. Li, Face Alignment Across Large Poses: A 3D Solution, CVPR 2016"


class LandmarkArchive(files.Archive):
    """A face's box is that of its landmarks (`Box.of_face`)."""

    own_boxes = BOX_RULE
    detector_fit = TO_LANDMARKS
    ending: ClassVar[str]  # of the file beside a picture

    def paired(self, folder: str = "") -> list[str]:
        """Every picture, and every file of landmarks that lacks its picture: nothing half there is missed."""
        pictures = list(self.listing(files.PICTURES, folder))
        complete = {str(Path(path).with_suffix("")) for path in pictures}
        others = self.listing((self.ending,), folder)
        return pictures + [path for path in others if str(Path(path).with_suffix("")) not in complete]

    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        """The picture, and what lies beside it."""
        return ref.key, str(Path(ref.key).with_suffix(self.ending))

    def places(self, ref: FaceRef) -> tuple[Path, ...]:
        """Of the face's files. Raises Rejected where one lies outside the root, or the picture is missing."""
        path, *others = (files.within(self.root, name, self.spec.links) for name in self.files_of(ref))
        if path.suffix.lower() == self.ending:
            raise Rejected("unreadable_file", f"{files.printable(str(path))} has no picture beside it")
        return path, *others
