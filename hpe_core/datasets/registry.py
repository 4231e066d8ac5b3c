"""From the `reader:` key to a Source, and the adapter that makes rendered heads one."""

import hashlib
import json
from collections.abc import Iterator, Sequence

from hpe_core.datasets.base import Annotation, FaceRef, Source
from hpe_core.geometry.crop import Image
from hpe_core.spec.data import ConventionSpec, DatasetSpec


def open_source(spec: DatasetSpec) -> Source:
    """The reader that `spec.reader` names, on `spec.root` made absolute, with the convention and boxes of `spec`.

    Opens no file.
    """
    source = _reader(spec)
    if spec.convention != ConventionSpec():
        from hpe_core.datasets.converted import Converted

        source = Converted(source)
    if spec.boxes:
        from hpe_core.datasets.boxes import Boxed

        return Boxed(source)
    if spec.detector is not None:
        from hpe_core.datasets.detected import Detected

        return Detected(source)
    return source


def _reader(spec: DatasetSpec) -> Source:
    """Import statements, not a table of names: the stage store follows them to the code that shards depend on."""
    if spec.reader == "pointing04":
        from hpe_core.datasets.readers.pointing04 import Pointing04

        return Pointing04(spec)
    if spec.reader == "aflw2000":
        from hpe_core.datasets.readers.aflw2000 import Aflw2000

        return Aflw2000(spec)
    if spec.reader == "300w_lp":
        from hpe_core.datasets.readers.w300lp import W300LP

        return W300LP(spec)
    if spec.reader == "aflw":
        from hpe_core.datasets.readers.aflw import Aflw

        return Aflw(spec)
    if spec.reader == "biwi":
        from hpe_core.datasets.readers.biwi import Biwi

        return Biwi(spec)
    if spec.reader == "manifest":
        from hpe_core.datasets.readers.manifest import Manifest

        return Manifest(spec)
    assert spec.reader == "synthetic", f"reader {spec.reader} is in the spec but not in the registry"
    return SyntheticSource(spec)


class SyntheticSource:
    """Heads rendered with an exact pose: number i is a function of (seed, i) alone."""

    risky = False

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec

    def refs(self) -> Iterator[FaceRef]:
        """`count` heads, `heads_per_person` of each person; nothing is rendered."""
        for index in range(self.spec.count):
            yield FaceRef(*self._names(index), str(index))

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        from hpe_core.render.scene import render_head

        spec, index = self.spec, int(ref.key)
        head = render_head(spec.seed, index, size=spec.image_px, heads_per_person=spec.heads_per_person)
        assert (head.sample_id, head.group) == self._names(index), "the renderer names its heads otherwise"
        return Annotation(ref, head.box, head.pose, head.landmarks, head.visible), head.image

    def fingerprint(self) -> str:
        """Of what decides the pictures; the renderer's own code is hashed by the stage store."""
        spec = self.spec
        body = json.dumps([spec.seed, spec.count, spec.image_px, spec.heads_per_person])
        return hashlib.sha256(body.encode()).hexdigest()

    def states(self, refs: Sequence[FaceRef]) -> list[str]:
        """Of what decides a head beside its number; how many others are rendered is not part of it."""
        spec = self.spec
        return [json.dumps([spec.seed, spec.image_px, spec.heads_per_person])] * len(refs)

    def fetch(self, refs: Sequence[FaceRef]) -> None:
        """Nothing: heads are rendered where they are needed."""

    def _names(self, index: int) -> tuple[str, str]:
        """(sample id, group) as the renderer spells them, without rendering."""
        seed, person = self.spec.seed, index // self.spec.heads_per_person
        return f"head-{seed}-{index:06d}", f"person-{seed}-{person:05d}"
