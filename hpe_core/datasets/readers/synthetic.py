"""Rendered heads: number i of them is a function of (seed, i) alone, with an exact pose, box and landmarks."""

import json
from collections.abc import Iterator, Sequence

from hpe_core.datasets.base import Annotation, FaceRef, Reader, Terms
from hpe_core.detection.fit import DetectorFit
from hpe_core.errors import check
from hpe_core.geometry.crop import BOX_RULE, Image
from hpe_core.render.scene import USUAL, WHOLE_CIRCLE, render_head
from hpe_core.spec.data import ConventionSpec, DatasetSpec


class RenderedHeads(Reader):
    """`count` heads, `heads_per_person` of each person."""

    name = "synthetic"
    terms = Terms(
        "rendered heads",
        "made by this project's own renderer, so there is no other owner and no real person",
        research_only=False,
    )
    risky = False
    photographs = False
    own_boxes = BOX_RULE
    detector_fit = DetectorFit(1.43, 1.10, 0.12)

    def check(self) -> None:
        super().check()
        spec = self.spec
        check(spec.count > 0, "a synthetic dataset needs count > 0")
        check(not spec.boxes, "boxes are for archives; rendered heads have exact ones")
        check(spec.convention == ConventionSpec(), "convention is for archives; rendered heads have exact poses")

    def refs(self) -> Iterator[FaceRef]:
        """Nothing is rendered."""
        for index in range(self.spec.count):
            yield FaceRef(*self._names(index), str(index))

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        spec, index = self.spec, int(ref.key)
        poses = WHOLE_CIRCLE if spec.poses == "around" else USUAL
        head = render_head(spec.seed, index, size=spec.image_px, heads_per_person=spec.heads_per_person, poses=poses)
        assert (head.sample_id, head.group) == self._names(index), "the renderer names its heads otherwise"
        return Annotation(head.box, head.pose, head.landmarks, head.visible), head.image

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """What decides a head beside its number. How many others are rendered is not part of it."""
        spec = self.spec
        return [json.dumps([spec.seed, spec.image_px, spec.heads_per_person, spec.poses])] * len(refs)

    def origin(self, spec: DatasetSpec) -> object:
        return spec.seed

    def _names(self, index: int) -> tuple[str, str]:
        """(sample id, group) as the renderer spells them, without rendering."""
        seed, person = self.spec.seed, index // self.spec.heads_per_person
        return f"head-{seed}-{index:06d}", f"person-{seed}-{person:05d}"
