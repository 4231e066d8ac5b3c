"""A face detector's boxes for any reader: what a network meets in use, in place of boxes drawn by hand or landmarks.

A face keeps its reader's pose, person and landmarks and gets the detection that overlaps the reader's own box most.
Below `MIN_OVERLAP` the detector has not found this face, and it is rejected as no_box. Where the reader has no box of
its own, a picture's only detection is the face. The detector runs where the picture is decoded, so a file that ends it
costs that file only.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Source, Wrapped
from hpe_core.datasets.boxes import MIN_OVERLAP, best_match
from hpe_core.datasets.files import printable
from hpe_core.detection.detector import detector_of, model_sha256
from hpe_core.detection.fit import TO_LANDMARKS
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Image


class Detected(Wrapped):
    """A source with boxes of the detector `spec.detector` in place of its own."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        assert source.spec.detector is not None
        self.detector = source.spec.detector

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        annotation, image = self.source.load(ref)
        found = [face.box for face in detector_of(self.detector)(image)]
        who = f"{ref.sample_id} ({printable(ref.key)})"
        if not found:
            raise Rejected("no_box", f"{who}: the detector finds no face")
        best, share = best_match(found, annotation.box)
        if share < MIN_OVERLAP:
            said = f"largest overlap {share:.2f}; {MIN_OVERLAP:g} is needed"
            raise Rejected("no_box", f"{who}: no face that the detector finds is the annotated one ({said})")
        return replace(annotation, box=TO_LANDMARKS.of(best) if self.detector.fit else best), image

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """The reader's, with the detector's file and settings, which decide every face."""
        try:
            model = model_sha256(self.detector)
        except SpecError as error:
            raise DatasetError(str(error)) from None
        settings = json.dumps(asdict(self.detector) | {"model": model, "min_overlap": MIN_OVERLAP}, sort_keys=True)
        return [f"{state} {settings}" for state in self.source.states(refs)]
