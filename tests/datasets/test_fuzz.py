"""600 mutated .mat files and 600 mutated JPEGs through the decoding process: no dead job, and nothing wrong kept.

Wrong is what the format lets a reader see. An uncompressed number and the coded data of a JPEG can change without a
trace, so there, and only there, a mutation may pass with other values; everywhere else what is kept must be what was
written, and always what another decoder makes of the same bytes.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image as Pil

from hpe_core.datasets.base import FaceRow, Rejected
from hpe_core.datasets.registry import open_source
from hpe_core.datasets.sandbox import Loaded, Sandbox
from hpe_core.geometry.crop import canonical_crop
from hpe_core.spec.data import CropSpec, DatasetSpec
from tests.archives import write_aflw2000
from workflows.survival.listings import MUTANTS as COUNT
from workflows.survival.listings import mutated

CROP = CropSpec(size=32, margin_px=4)
OF_ANNOTATIONS = {"bad_annotation", "nan_pose", "no_box", "box_degenerate", "box_outside", "decoder_crashed"}
OF_PICTURES = {"not_a_picture", "truncated_picture", "damaged_picture", "too_large", "box_outside"}
CODED = {0xC0, 0xC4, 0xDA, 0xDB, 0xDD}  # SOF0, DHT, SOS with its data, DQT, DRI: nothing there has a checksum


def through_the_sandbox(root: Path, ending: str) -> tuple[FaceRow, list[bytes], list[Loaded], int]:
    """(the sound face, the mutated files, what became of each, how many processes it took).

    `root` holds one sound AFLW2000 face; copies of it are written there whose files with this ending are mutated.
    """
    sound = {suffix: (root / f"sound{suffix}").read_bytes() for suffix in (".jpg", ".mat")}
    files = [mutated(sound[ending], number) for number in range(COUNT)]
    for number, data in enumerate(files):
        for suffix in sound:
            (root / f"{number:03d}{suffix}").write_bytes(data if suffix == ending else sound[suffix])
    source = open_source(DatasetSpec("aflw2000", root=str(root)))
    with Sandbox(source, CROP, timeout_s=10) as sandbox:
        answers, children = [], set()
        for answer in sandbox.load_many(sorted(source.refs())):
            answers.append(answer)
            children.add(sandbox._child and sandbox._child.pid)
    *rest, first = answers  # digits sort before 'sound'
    assert len(rest) == COUNT and isinstance(first, FaceRow)
    return first, files, rest, len(children)


def places(first: bytes, second: bytes) -> Sequence[int]:
    """Where two files of one length differ; of other lengths, the first place only."""
    common = min(len(first), len(second))
    a, b = (np.frombuffer(data[:common], np.uint8) for data in (first, second))
    found = np.flatnonzero(a != b)
    return found if len(first) == len(second) else [int(found[0]) if len(found) else common]


@pytest.mark.parametrize("compressed", [True, False])
def test_what_is_kept_of_a_mutated_mat_is_what_was_written(tmp_path, compressed):
    """The archives' files are compressed, so that zlib's checksum covers them."""
    path = write_aflw2000(tmp_path, "sound").with_suffix(".mat")
    mat = {key: value for key, value in scipy.io.loadmat(path).items() if not key.startswith("_")}
    scipy.io.savemat(path, mat, do_compression=compressed)
    written, numbers = path.read_bytes(), set[int]()
    for name in () if compressed else ("Pose_Para", "pt3d_68"):
        start = written.index(mat[name].tobytes(order="F"))
        numbers |= set(range(start, start + mat[name].nbytes))
    first, files, answers, _ = through_the_sandbox(tmp_path, ".mat")
    kept = 0
    for data, answer in zip(files, answers, strict=True):
        if isinstance(answer, Rejected):
            assert answer.reason in OF_ANNOTATIONS, answer.detail
            continue
        same = answer.pose == first.pose and np.array_equal(answer.landmarks, first.landmarks, equal_nan=True)
        assert same or (len(data) == len(written) and numbers.intersection(places(data, written)))
        kept += 1
    assert 0 < kept < COUNT / 2


def test_what_is_kept_of_a_mutated_jpeg_is_all_of_it(tmp_path):
    written = write_aflw2000(tmp_path, "sound").read_bytes()
    first, files, answers, processes = through_the_sandbox(tmp_path, ".jpg")
    segment = segments(written)
    assert processes == 1, "a picture took its process down"
    changed = 0
    for data, answer in zip(files, answers, strict=True):
        if isinstance(answer, Rejected):
            assert answer.reason in OF_PICTURES, answer.detail
            continue
        with Pil.open(io.BytesIO(data)) as opened:
            opened.load()  # raises for a picture that ends early
            pixels = np.asarray(opened.convert("RGB"))
        assert np.array_equal(canonical_crop(pixels, first.crop.box, CROP).pixels, answer.crop.pixels)
        if not np.array_equal(answer.crop.pixels, first.crop.pixels):
            assert any(segment[min(place, len(segment) - 1)] in CODED for place in places(data, written))
            changed += 1
    kept = sum(isinstance(answer, FaceRow) for answer in answers)
    assert changed < kept < COUNT / 2


def segments(jpeg: bytes) -> list[int]:
    """For each byte of a sound JPEG the marker of the segment it lies in; SOS stands for the coded data after it."""
    out, place = [0xD8, 0xD8], 2
    while out[-1] != 0xDA:
        marker, length = jpeg[place + 1], 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        out += [marker] * length
        place += length
    return out + [0xDA] * (len(jpeg) - place)
