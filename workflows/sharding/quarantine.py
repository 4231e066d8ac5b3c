"""The quarantined, for eyes: the quarantine file as CSV, and a contact sheet of what is left of their pictures.

A reason and a sentence say what is wrong with a face; a picture says whether that is true. So the sheet shows what even
a lenient decoder can make of each file, half pictures included, with the box where the reader found one. The files
are those that failed to load, so they are opened in the decoding process, once and briefly; those that took it down, or
that may not be opened at all, are named on an empty tile.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from pyarrow import csv

from hpe_core.data.rows import read_table
from hpe_core.datasets import files
from hpe_core.datasets.base import Annotation, FaceRef, FaceRow, Rejected, Source, Wrapped
from hpe_core.datasets.decoding.pictures import read_bytes
from hpe_core.datasets.plan import DatasetPlan
from hpe_core.datasets.sandbox import Sandbox
from hpe_core.geometry.crop import Box, Image, encoded
from hpe_core.geometry.draw import contact_sheet
from hpe_core.spec.data import CropSpec
from workflows.sharding.accounts import QUARANTINE, Broken

TABLE, SHEET = "quarantine.csv", "quarantine.png"
SHOWN, COLUMNS, TILE = 48, 6, 144
LETTERS = 26  # of a caption's line
TIMEOUT_S = 5.0
UNSEEN = ("decoder_crashed", "decoder_hung", "too_large", "outside_root")  # reasons to open no file
BOX_COLOR, EMPTY = (230, 50, 40), 225


def show_quarantine(
    folder: Path, broken: Sequence[Broken], plans: Mapping[str, DatasetPlan], sources: Mapping[str, Source]
) -> None:
    """Write `quarantine.csv`, and `quarantine.png` unless nobody is quarantined, beside the quarantine file."""
    csv.write_csv(read_table(folder / QUARANTINE), folder / TABLE)
    sheet = folder / SHEET
    sheet.unlink(missing_ok=True)
    if not broken:
        return
    shown = chosen(broken, SHOWN)
    tiles: dict[Broken, Image] = {}
    for dataset in dict.fromkeys(face.dataset for face in shown):
        mine = [face for face in shown if face.dataset == dataset and face.reason not in UNSEEN]
        tiles |= pictures_of(mine, plans[dataset], sources[dataset])
    empty = np.full((TILE, TILE, 3), EMPTY, np.uint8)
    drawn = contact_sheet([tiles.get(face, empty) for face in shown], COLUMNS, [caption(face) for face in shown])
    sheet.write_bytes(encoded(drawn))


def chosen(broken: Sequence[Broken], count: int) -> list[Broken]:
    """At most `count` faces, of every reason in turn: a thousand faces without a box must not hide the rest."""
    by_reason: dict[str, list[Broken]] = {}
    for face in broken:
        by_reason.setdefault(face.reason, []).append(face)
    turns = max(map(len, by_reason.values()), default=0)
    in_turn = [faces[turn] for turn in range(turns) for faces in by_reason.values() if turn < len(faces)]
    return sorted(in_turn[:count], key=lambda face: (face.reason, face))


def caption(face: Broken) -> str:
    """Reason, dataset and the end of the sample id, in OpenCV's letters."""
    name = face.sample_id if len(face.sample_id) <= LETTERS else f"...{face.sample_id[3 - LETTERS :]}"
    lines = [face.reason, face.dataset[:LETTERS], name]
    return "\n".join(line.encode("ascii", "replace").decode() for line in lines)


def pictures_of(faces: Sequence[Broken], plan: DatasetPlan, source: Source) -> dict[Broken, Image]:
    """(TILE, TILE, 3) of each face whose file shows anything, decoded in a child process."""
    asked = {(face.split, face.sample_id) for face in faces}
    listed = ((job.split, ref) for job in plan.jobs for ref in job.refs)
    shown = ((split, ref) for split, ref in chain(listed, plan.repeated) if (split, ref.sample_id) in asked)
    refs = {(split, ref.sample_id, files.printable(ref.key)): ref for split, ref in shown}
    wanted = [refs[face.split, face.sample_id, face.path] for face in faces]
    source.fetch(wanted)
    with Sandbox(Remains(source), CropSpec(size=TILE, margin_px=0), timeout_s=TIMEOUT_S, tries=1) as sandbox:
        answers = list(sandbox.load_many(wanted))
    return {
        face: answer.crop.pixels for face, answer in zip(faces, answers, strict=True) if isinstance(answer, FaceRow)
    }


class Remains(Wrapped):
    """A source of whole pictures instead of faces: as the reader gives them, else as a lenient decoder does."""

    def load(self, ref: FaceRef) -> tuple[Annotation, Image]:
        """The picture with its box drawn, as one face that fills it, facing ahead. Raises Rejected."""
        try:
            annotation, image = self.source.load(ref)
        except Rejected:
            image = self._leniently(ref)
        else:
            image = with_box(image, annotation.box) if isinstance(annotation.box, Box) else image
        height, width = image.shape[:2]
        return Annotation(Box(0, 0, width, height), (0.0, 0.0, 0.0)), image

    def _leniently(self, ref: FaceRef) -> Image:
        root = files.archive_root(self.spec.root)
        folder = root.parent if root.is_file() else root  # a manifest's root may be the table itself
        data = read_bytes(files.within(folder, ref.key, self.spec.links))
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        # The end mark of a JPEG, which a cut one lacks; whole files end before it.
        image = cv2.imdecode(np.frombuffer(data + b"\xff\xd9", np.uint8), flags)
        if image is None:
            raise Rejected("not_a_picture", f"{ref.sample_id} shows nothing")
        return np.asarray(image, dtype=np.uint8)


def with_box(image: Image, box: Box) -> Image:
    """A copy with the box's outline, as far as the picture shows it."""
    height, width = image.shape[:2]
    corners = np.array([[box.x1, box.y1], [box.x2, box.y2]])
    if not np.isfinite(corners).all():
        return image
    (x1, y1), (x2, y2) = np.clip(corners, -1, [width, height]).round().astype(int).tolist()
    drawn = np.array(image, dtype=np.uint8, order="C")
    return np.asarray(cv2.rectangle(drawn, (x1, y1), (x2, y2), BOX_COLOR, max(1, max(height, width) // 100)))
