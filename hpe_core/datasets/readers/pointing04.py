"""Pointing'04 (Gourier, Hall, Crowley 2004): 15 people, two series of 93 poses each, 288 x 384 JPEGs.

A picture is `person<PP><series><NN><tilt><pan>.jpg`, e.g. person04112-15+30.jpg: person 04, series 1, number 12, tilt
-15, pan +30 (`personne` in the first edition). A folder `Front` repeats the pictures that look ahead and is left out.
Tilt and pan have the signs of our pitch and yaw; tilt +-90 occurs with pan 0 only; there is no roll label. All angles
are nominal: people looked at markers, and turned their heads by about 0.6 of the tilt and 0.9 of the pan, so the set
ranks models rather than measures them.

The box lies in a .txt beside the picture: the file's name, then `Face` and the box's centre x, centre y, width and
height, a line each. A picture without one has no box of its own.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, FaceRef, Rejected, Terms, lacking
from hpe_core.datasets.decoding.pictures import read_bytes, read_picture
from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.crop import Box, Image

NAME = re.compile(
    r"person(?:ne)?(?P<person>\d{2})(?P<series>\d)(?P<number>\d{2})(?P<tilt>[+-]\d{1,2})(?P<pan>[+-]\d{1,2})",
    re.IGNORECASE,
)
MAX_TEXT = 1 << 16
PEOPLE, OF_EACH = 15, 2 * 93  # two series of 93 poses
FRONT = "front"


class Pointing04(files.Archive):
    """The archive unpacked: folders Person01 ... Person15 under `spec.root` (as many as are there)."""

    name = "pointing04"
    terms = Terms(
        "Pointing'04",
        "any purpose, with citation",
        research_only=False,
        cite="N. Gourier, D. Hall, J. L. Crowley, Estimating Face Orientation from Robust Detection of Salient Facial "
        "Structures, FG Net Workshop on Visual Observation of Deictic Gestures (POINTING), Cambridge 2004",
    )
    whole = PEOPLE * OF_EACH
    own_boxes = "archive"
    detector_fit = DetectorFit(0.85, 0.66, 0.02)  # 616 faces

    def refs(self) -> Iterator[FaceRef]:
        """One per picture; a picture whose name is of another form is listed too, and rejected by `load`."""
        for path in self.listing(files.PICTURES):
            if FRONT in map(str.lower, Path(path).parts[:-1]):
                continue
            stem = Path(path).stem
            match = NAME.fullmatch(stem)
            folder = files.printable(Path(path).parent.name)
            group = f"Person{match['person']}" if match else folder or "nobody"
            yield FaceRef(files.printable(stem), group, path)

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        path = files.within(self.root, ref.key, self.spec.links)
        match = NAME.fullmatch(path.stem)
        if match is None:
            detail = f"{ref.sample_id}: the file's name does not spell person, tilt and pan"
            raise Rejected("bad_annotation", detail)
        pose = (float(match["tilt"]), float(match["pan"]), 0.0)
        text = files.within(self.root, _text_of(ref.key), self.spec.links)
        missing = Rejected("no_box", f"{files.printable(str(text))} is missing")
        box = read_box(text) if os.path.exists(text) else missing
        return Annotation(box, pose), read_picture(path)

    def files_of(self, ref: FaceRef) -> tuple[str, ...]:
        return ref.key, _text_of(ref.key)

    def missing_parts(self, refs: Sequence[FaceRef]) -> list[str]:
        known = {f"Person{person:02d}": OF_EACH for person in range(1, PEOPLE + 1)}
        return lacking(Counter(ref.group for ref in refs), known)


def _text_of(picture: str) -> str:
    return str(Path(picture).with_suffix(".txt"))


def read_box(path: Path) -> Box:
    """The first face of an annotation text. Raises Rejected."""
    name = files.printable(str(path))
    words = read_bytes(path, MAX_TEXT).decode("utf-8-sig", "replace").replace(",", " ").split()
    place = next((i for i, word in enumerate(words) if word.lower().rstrip(":") == "face"), None)
    if place is None:
        raise Rejected("no_box", f"{name} holds no 'Face' entry")
    try:
        x, y, width, height = (float(word) for word in words[place + 1 : place + 5])
    except ValueError:
        raise Rejected("bad_annotation", f"{name} has no four numbers after 'Face'") from None
    return Box.around((x, y), width, height)
