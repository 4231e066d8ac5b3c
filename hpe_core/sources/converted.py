"""A reader's labels in our convention, where `spec.convention` says that the archive's differ from what it expects."""

import dataclasses
from collections.abc import Iterable

from hpe_core.convention import to_ours
from hpe_core.crop import Image
from hpe_core.sources.base import Annotation, FaceRef, Source


class Converted:
    """A source with the pose of every face converted; all else is the reader's."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.spec = source.spec
        self.risky = source.risky
        self.whole: int | None = getattr(source, "whole", None)

    def refs(self) -> Iterable[FaceRef]:
        return self.source.refs()

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        annotation, image = self.source.load(ref)
        pitch, yaw, roll = (float(angle) for angle in to_ours(annotation.pose, self.spec.convention))
        return dataclasses.replace(annotation, pose=(pitch, yaw, roll)), image

    def fingerprint(self) -> str:
        """Of the reader's files; the convention itself is among the keys that the stage store hashes."""
        return self.source.fingerprint()
