"""A reader's labels in our convention, where `spec.convention` says that the archive's differ from what it expects.

The convention is among the keys that decide a shard, so the states are the reader's.
"""

import dataclasses

from hpe_core.datasets.base import Annotation, FaceRef, Wrapped, pose_of
from hpe_core.geometry.convention import to_ours
from hpe_core.geometry.crop import Image


class Converted(Wrapped):
    """A source with the pose of every face converted."""

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        annotation, image = self.source.load(ref)
        return dataclasses.replace(annotation, pose=pose_of(to_ours(annotation.pose, self.spec.convention))), image
