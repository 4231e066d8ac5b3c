"""Readers against independent readings of the same files, and decoding of files that are not what they seem."""

import io
import os
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image as Pil
from scipy.spatial.transform import Rotation

from hpe_core.sandbox import load_directly
from hpe_core.sources.base import DatasetError, FaceRef, Rejected, Source
from hpe_core.sources.pictures import decode_picture, libjpeg_complaints, read_picture
from hpe_core.sources.registry import open_source
from hpe_core.spec import CropSpec, DatasetSpec
from tests.archives import picture, write_aflw2000, write_pointing04

# ---------------------------------------------------------------- pictures


def encoded(pil: Pil.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    pil.save(stream, kind, **options)
    return stream.getvalue()


def rejection(data: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decode_picture(data, "some/file.jpg")
    assert "some/file.jpg" in caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason


RGB = picture(3, 50, 70)
JPEG = encoded(Pil.fromarray(RGB), "JPEG", quality=90)
PNG = encoded(Pil.fromarray(RGB), "PNG")


def test_lossless_formats_give_the_stored_pixels() -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert np.array_equal(decode_picture(encoded(Pil.fromarray(RGB), kind), "f"), RGB)


def test_jpeg_equals_an_independent_decoder() -> None:
    assert np.array_equal(decode_picture(JPEG, "f"), np.asarray(Pil.open(io.BytesIO(JPEG)).convert("RGB")))


def test_gray_alpha_and_palette_become_rgb() -> None:
    gray = RGB[..., 0]
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode_picture(encoded(Pil.fromarray(gray), kind), "f"), np.stack([gray] * 3, -1))
    jpeg = decode_picture(encoded(Pil.fromarray(gray), "JPEG", quality=95), "f")
    assert jpeg.shape == RGB.shape and (jpeg[..., 0] == jpeg[..., 2]).all()
    alpha = np.dstack([RGB, np.full(RGB.shape[:2], 9, np.uint8)])
    assert np.array_equal(decode_picture(encoded(Pil.fromarray(alpha), "PNG"), "f"), RGB)
    palette = Pil.fromarray(RGB).quantize(64)
    assert np.array_equal(decode_picture(encoded(palette, "PNG"), "f"), np.asarray(palette.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    flat = np.full((32, 32, 3), (200, 90, 30), np.uint8)
    back = decode_picture(encoded(Pil.fromarray(flat).convert("CMYK"), "JPEG", quality=95), "f")
    assert np.abs(back.astype(int) - flat).max() <= 6


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    expected = np.round(deep / 257).astype(int)
    assert np.abs(decode_picture(cv2.imencode(".png", deep)[1].tobytes(), "f")[..., 0] - expected).max() <= 1
    assert np.abs(decode_picture(cv2.imencode(".tiff", deep)[1].tobytes(), "f")[..., 0] - expected).max() <= 1
    colour = np.dstack([deep, deep[::-1], deep.T])
    back = decode_picture(cv2.imencode(".png", colour[..., ::-1])[1].tobytes(), "f")
    assert np.abs(back - np.round(colour / 257)).max() <= 1


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_exif_orientation_is_ignored(orientation: int) -> None:
    exif = Pil.Exif()
    exif[0x0112] = orientation
    turned = encoded(Pil.fromarray(RGB), "JPEG", quality=90, exif=exif)
    assert np.array_equal(decode_picture(turned, "f"), decode_picture(JPEG, "f"))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "CMYK", "PNG"])
def test_no_truncated_picture_passes(kind: str, share: float) -> None:
    data = {
        "JPEG": JPEG,
        "progressive": encoded(Pil.fromarray(RGB), "JPEG", progressive=True),
        "CMYK": encoded(Pil.fromarray(RGB).convert("CMYK"), "JPEG"),
        "PNG": PNG,
    }[kind]
    assert rejection(data[: int(len(data) * share)]) in ("truncated_picture", "damaged_picture")


def test_a_truncated_jpeg_with_its_end_mended_does_not_pass() -> None:
    assert rejection(JPEG[: len(JPEG) // 2] + b"\xff\xd9") in ("truncated_picture", "damaged_picture")


@pytest.mark.parametrize("position", range(40, len(PNG) - 20, len(PNG) // 12))
def test_no_damaged_png_passes(position: int) -> None:
    damaged = bytearray(PNG)
    damaged[position] ^= 0x10
    assert rejection(bytes(damaged)) in ("damaged_picture", "truncated_picture")


@pytest.mark.parametrize(
    "data",
    [b"", bytes(1000), b"<!DOCTYPE html><html>404</html>", b"GIF89a" + bytes(50), b"hello", b"%PDF-1.4"],
)
def test_what_is_no_picture(data: bytes) -> None:
    assert rejection(data) == "not_a_picture"


def test_float_pixels_are_refused() -> None:
    assert rejection(encoded(Pil.fromarray(RGB[..., 0].astype(np.float32)), "TIFF")) == "not_a_picture"


@pytest.mark.parametrize(("width", "height"), [(65_000, 65_000), (20_000, 10_000)])
def test_bombs_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunk = b"IHDR" + header
    bomb = PNG[:8] + len(header).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + PNG[33:]
    assert rejection(bomb) == "too_large"


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("absent.jpg", "folder.jpg", "pipe.jpg", "loop.jpg", "nul\0.jpg"):
        with pytest.raises(Rejected) as caught:
            read_picture(tmp_path / name)
        assert caught.value.reason == "unreadable_file" and name.split("\0")[0] in caught.value.detail


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/b\xffld.png"
    with open(path, "wb") as stream:
        stream.write(PNG)
    assert np.array_equal(read_picture(Path(os.fsdecode(path))), RGB)


def test_mutated_jpegs_are_decoded_whole_or_rejected() -> None:
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    for _ in range(300):
        data = bytearray(JPEG)
        for position in rng.integers(0, len(data), rng.integers(1, 6)):
            data[position] = int(rng.integers(256))
        try:
            assert decode_picture(bytes(data), "f").ndim == 3
            outcomes["decoded"] += 1
        except Rejected as rejected:
            outcomes[rejected.reason] += 1
    assert outcomes["damaged_picture"] + outcomes["truncated_picture"] > 100


def test_stderr_of_others_passes_through(capfd: pytest.CaptureFixture[str]) -> None:
    with libjpeg_complaints() as complaints:
        os.write(2, b"hello\nCorrupt JPEG data: 3 extraneous bytes\n")
    assert complaints == ["Corrupt JPEG data: 3 extraneous bytes"]
    assert capfd.readouterr().err == "hello\n"


# ---------------------------------------------------------------- AFLW2000


def source(reader: str, root: Path, **more: object) -> Source:
    return open_source(DatasetSpec(reader=reader, root=str(root), **more))  # type: ignore[arg-type]


def load_reason(opened: Source, ref: FaceRef) -> str:
    with pytest.raises(Rejected) as caught:
        opened.load(ref)
    assert ref.sample_id in caught.value.detail
    return caught.value.reason


def test_aflw2000_reads_pose_box_and_landmarks(tmp_path: Path) -> None:
    write_aflw2000(tmp_path, "image00002", (12.0, -34.5, 7.25))
    opened = source("aflw2000", tmp_path, landmark_box_scale=1.5)
    (ref,) = opened.refs()
    assert (ref.sample_id, ref.group, ref.key) == ("image00002", "image00002", "image00002.jpg")
    annotation, image = opened.load(ref)
    assert annotation.pose == pytest.approx((12.0, -34.5, 7.25), abs=1e-4)
    points = scipy.io.loadmat(tmp_path / "image00002.mat")["pt3d_68"][:2].T
    assert annotation.landmarks == pytest.approx(points) and annotation.visible is None
    spread = points.max(0) - points.min(0)
    assert (annotation.box.width, annotation.box.height) == pytest.approx(tuple(spread * 1.5), rel=1e-5)
    assert image.shape == (120, 120, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Pose_Para": None}, "bad_annotation"),
        ({"Pose_Para": np.array([[np.nan, 0, 0, 0, 0, 0, 1]])}, "nan_pose"),
        ({"Pose_Para": np.array([[0, np.inf, 0]])}, "nan_pose"),
        ({"Pose_Para": np.array([[0.1, 0.2]])}, "bad_annotation"),
        ({"Pose_Para": "left"}, "bad_annotation"),
        ({"Pose_Para": np.array([[1j, 2, 3]])}, "bad_annotation"),
        ({"Pose_Para": {"pitch": 1.0}}, "bad_annotation"),
        ({"pt3d_68": None}, "bad_annotation"),
        ({"pt3d_68": np.zeros((3, 0))}, "no_box"),
        ({"pt3d_68": np.full((3, 68), np.nan)}, "bad_annotation"),
        ({"pt3d_68": np.zeros((68, 3))}, "no_box"),
    ],
)
def test_aflw2000_bad_annotations(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    write_aflw2000(tmp_path, "image00002", **change)  # type: ignore[arg-type]
    opened = source("aflw2000", tmp_path)
    assert load_reason(opened, next(iter(opened.refs()))) == reason


def test_aflw2000_lists_what_is_half_there(tmp_path: Path) -> None:
    for i in range(3):
        write_aflw2000(tmp_path, f"image0000{i}")
    (tmp_path / "image00000.mat").unlink()
    (tmp_path / "image00001.jpg").unlink()
    (tmp_path / ".hidden.jpg").write_bytes(JPEG)
    (tmp_path / "notes.txt").write_text("mine")
    opened = source("aflw2000", tmp_path)
    refs = sorted(opened.refs())
    assert [ref.sample_id for ref in refs] == ["image00000", "image00001", "image00002"]
    assert [load_reason(opened, ref) for ref in refs[:2]] == ["unreadable_file", "unreadable_file"]
    for content in (b"", b"not matlab", bytes(200), (tmp_path / "image00002.mat").read_bytes()[:300]):
        (tmp_path / "image00002.mat").write_bytes(content)
        assert load_reason(opened, refs[2]) == "bad_annotation"


def test_aflw2000_labels_turn_its_own_landmarks(real_data: Path) -> None:
    """All 39 samples, read without our code: the rotation that carries the 3D landmarks of the most frontal face
    to those of another is the quotient of the two labels, to 3.1 degrees at worst."""
    points, labels = [], []
    opened = source("aflw2000", real_data / "aflw2000")
    refs = sorted(opened.refs())
    assert len(refs) == 39 == len({ref.group for ref in refs})
    for ref in refs:
        cloud = scipy.io.loadmat((real_data / "aflw2000" / ref.key).with_suffix(".mat"))["pt3d_68"].T
        points.append((cloud - cloud.mean(0)) * [1, 1, -1])  # their z points at the camera, ours away from it
        labels.append(opened.load(ref)[0].pose)
    angles = np.array(labels)
    stated = Rotation.from_euler("XYZ", angles * [-1, 1, 1], degrees=True)
    frontal = int(np.abs(angles).sum(1).argmin())
    for i, cloud in enumerate(points):
        fitted, _ = Rotation.align_vectors(
            cloud / np.linalg.norm(cloud), points[frontal] / np.linalg.norm(points[frontal])
        )
        assert np.degrees((fitted * (stated[i] * stated[frontal].inv()).inv()).magnitude()) < 4
    # And in plain words: positive yaw moves the nose along the eye line to the left of the picture.
    for cloud, (_, yaw, _) in zip(points, labels, strict=True):
        if abs(yaw) > 9:
            left, right, nose = cloud[36:42, :2].mean(0), cloud[42:48, :2].mean(0), cloud[30, :2]
            assert np.sign((nose - (left + right) / 2) @ (left - right)) == np.sign(yaw)


def test_all_real_faces_load(real_data: Path) -> None:
    for reader, count in (("aflw2000", 39), ("pointing04", 60)):
        opened = source(reader, real_data / reader)
        refs = sorted(opened.refs())[:: 1 if reader == "aflw2000" else 31]
        answers = list(load_directly(opened, CropSpec(), refs))
        assert len(answers) == count and not [a for a in answers if isinstance(a, Rejected)]


# ---------------------------------------------------------------- Pointing'04


def test_pointing04_counts_people_and_poses(real_data: Path) -> None:
    opened = source("pointing04", real_data / "pointing04")
    refs = sorted(opened.refs())
    groups = Counter(ref.group for ref in refs)
    assert set(groups.values()) == {186} and sorted(groups) == [f"Person{i:02d}" for i in range(1, 11)]
    for ref in refs:
        assert ref.key.startswith(ref.group + "/")
    for ref in refs[::97]:
        annotation, image = opened.load(ref)
        assert image.shape == (288, 384, 3)
        tail = ref.sample_id[len("person01100") :]
        split = max(tail.rfind("+"), tail.rfind("-"))
        assert annotation.pose == (float(tail[:split]), float(tail[split:]), 0.0)
        x, y, width, height = map(int, (real_data / "pointing04" / ref.key).with_suffix(".txt").read_text().split()[2:])
        box = annotation.box
        assert (*box.center, box.width, box.height) == (x, y, width, height)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x.jpg\r\n\r\nFace\r\n64\r\n48\r\n40\r\n50\r\n", None),
        ("x.jpg Face 64 48 40 50", None),
        ("\ufeffx.jpg\nface:\n64.0, 48, 40, 50", None),
        ("x.jpg\n\n64\n48\n40\n50\n", "no_box"),
        ("", "no_box"),
        ("x.jpg\nFace\n64\n48\n", "bad_annotation"),
        ("x.jpg\nFace\n64\n48\nwide\n50\n", "bad_annotation"),
    ],
)
def test_pointing04_texts(tmp_path: Path, text: str, reason: str | None) -> None:
    path = write_pointing04(tmp_path, 14, 7, -15, 30, text or " ")
    path.with_suffix(".txt").write_bytes(text.encode())
    opened = source("pointing04", tmp_path)
    (ref,) = opened.refs()
    assert (ref.sample_id, ref.group) == ("person14107-15+30", "Person14")
    if reason is None:
        annotation, _ = opened.load(ref)
        assert annotation.pose == (-15.0, 30.0, 0.0)
        assert (*annotation.box.center, annotation.box.width, annotation.box.height) == (64, 48, 40, 50)
    else:
        assert load_reason(opened, ref) == reason


def test_pointing04_extremes_and_strangers(tmp_path: Path) -> None:
    write_pointing04(tmp_path, 15, 0, -90, 0)
    write_pointing04(tmp_path, 15, 92, 90, 0)
    (tmp_path / "Person15" / "holiday.jpg").write_bytes(JPEG)
    opened = source("pointing04", tmp_path)
    refs = sorted(opened.refs())
    assert [ref.group for ref in refs] == ["Person15"] * 3
    assert load_reason(opened, refs[0]) == "bad_annotation"
    assert sorted(opened.load(ref)[0].pose for ref in refs[1:]) == [(-90.0, 0.0, 0.0), (90.0, 0.0, 0.0)]


# ---------------------------------------------------------------- all readers


def test_fingerprint_follows_the_files_and_not_the_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        for i in range(3):
            path = write_aflw2000(tmp_path / place, f"image0000{i}", seed=i)
            for file in (path, path.with_suffix(".mat")):
                os.utime(file, ns=(0, 1_000_000_000))
    a, b = source("aflw2000", tmp_path / "a"), source("aflw2000", tmp_path / "b")
    first = a.fingerprint()
    assert first == b.fingerprint() == a.fingerprint()
    (tmp_path / "a" / "notes.txt").write_text("not read by the reader")
    assert a.fingerprint() == first
    os.utime(tmp_path / "a" / "image00001.mat", ns=(0, 2_000_000_000))
    second = a.fingerprint()
    (tmp_path / "a" / "image00002.jpg").unlink()
    assert len({first, second, a.fingerprint()}) == 3


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    write_pointing04(tmp_path / "archive", 3, 7, 0, 30)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "Person03").symlink_to(tmp_path / "archive" / "Person03")
    (tmp_path / "archive" / "Person03" / "up").symlink_to(tmp_path / "archive" / "Person03")
    assert len(list(source("pointing04", tmp_path / "here").refs())) == 1


@pytest.mark.parametrize("reader", ["aflw2000", "pointing04"])
def test_absent_root_is_a_sentence(tmp_path: Path, reader: str) -> None:
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        list(source(reader, tmp_path / "nowhere").refs())


def test_synthetic_names_are_those_of_the_renderer() -> None:
    spec = DatasetSpec(reader="synthetic", count=14, seed=5, image_px=48, heads_per_person=4)
    opened = open_source(spec)
    refs = list(opened.refs())
    assert len(refs) == 14 and [len(list(opened.refs()))] == [14]
    assert sorted(Counter(ref.group for ref in refs).values()) == [2, 4, 4, 4]
    annotation, image = opened.load(refs[6])  # asserts that the renderer agrees
    again, same = opened.load(refs[6])
    assert np.array_equal(image, same) and annotation.pose == again.pose and image.shape == (48, 48, 3)
    assert annotation.landmarks is not None and annotation.visible is not None
    assert opened.fingerprint() == open_source(spec).fingerprint()
