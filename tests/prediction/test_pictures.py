"""Laws of pictures: known by their content, boxes in pixels of the file at whatever scale it was decoded."""

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pil

from hpe_core.datasets import pictures as decoding
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box
from tests.archives import picture
from workflows.prediction.faces import face_finder, why_unusable
from workflows.prediction.frames import Frame, Unusable
from workflows.prediction.keys import PredictSpec
from workflows.prediction.media import open_media
from workflows.prediction.output import row_of


def looked_at(*words: Path, out: Path, **more: int) -> list[Frame | Unusable]:
    return list(open_media([str(word) for word in words], out, upright=True, **more).frames())


def save(path: Path, image: np.ndarray, kind: str, **how: object) -> Path:
    Pil.fromarray(image).save(path, kind, **how)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.dat", "JPEG"), ("b.jpg", "PNG"), ("c", "WEBP"), ("d.png", "AVIF"), ("e.bin", "BMP"), ("f", "GIF")],
)
def test_a_picture_is_what_its_content_says(tmp_path, name, kind):
    image = picture(3, 48, 64)
    path = save(tmp_path / name, image, kind, quality=95)
    for word in (path, tmp_path):  # named, and found in a folder
        media = open_media([str(word)], tmp_path / "out", upright=True)
        (frame,) = media.frames()
        assert isinstance(frame, Frame) and frame.name == name and frame.scale == 1
        assert np.abs(frame.image.astype(int) - image).mean() < 12
        media.keep(frame, frame.image)
        (drawn,) = [file for file in (tmp_path / "out").iterdir() if file.is_file()]
        assert drawn.name == (name if path.suffix in (".jpg", ".png") else f"{name}.jpg")
        assert cv2.imread(str(drawn)).shape == image.shape


def test_words_that_begin_as_a_picture_does_are_none(tmp_path):
    save(tmp_path / "a", picture(0, 20, 30), "PPM")
    for name, text in (("b.txt", "BMW and others"), ("c", "P5 is a plan"), ("d.txt", "P6"), ("e", "RIFF, and WEBP")):
        (tmp_path / name).write_text(text)
    media = open_media([str(tmp_path)], tmp_path / "out", upright=True)
    assert media.names == ["a"] and media.left_out == {".txt": 2, "none": 2}
    with pytest.raises(SpecError, match="c is no picture by its content or its ending"):
        open_media([str(tmp_path / "c")], tmp_path / "out", upright=True)


def test_heic_is_read_where_pillow_heif_is_and_else_one_sentence_names_the_extra(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    image = np.repeat(np.arange(0, 256, 4, np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    exif = Pil.Exif()
    exif[0x0112] = 6
    pillow_heif.from_pillow(Pil.fromarray(image)).save(tmp_path / "phone.jpg", quality=90, exif=exif.tobytes())
    (frame,) = looked_at(tmp_path / "phone.jpg", out=tmp_path / "out")
    assert isinstance(frame, Frame) and frame.image.shape == (64, 48, 3)  # upright
    assert np.abs(frame.image.astype(int) - np.rot90(image, -1)).mean() < 6
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decoding.heic_is_read.cache_clear()
    try:
        (said,) = looked_at(tmp_path / "phone.jpg", out=tmp_path / "out")
        assert isinstance(said, Unusable) and "phone.jpg is HEIC" in said.said
        assert "pip install 'head-pose-distillation[heif]'" in said.said
    finally:
        decoding.heic_is_read.cache_clear()


@pytest.mark.parametrize("way", [1, 6])
@pytest.mark.parametrize(("limit", "by"), [(240 * 161, 1), (240 * 161 - 1, 2), (4000, 4), (700, 8)])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale_and_boxes_are_told_in_its_own_pixels(tmp_path, way, limit, by):
    image = cv2.resize(picture(5, 20, 30), (240, 161), interpolation=cv2.INTER_CUBIC)
    exif = Pil.Exif()
    exif[0x0112] = way
    save(tmp_path / "a.jpg", image, "JPEG", quality=95, exif=exif)
    (frame,) = looked_at(tmp_path / "a.jpg", out=tmp_path / "out", max_pixels=limit)
    assert isinstance(frame, Frame)
    padded = cv2.copyMakeBorder(image, 0, -161 % by, 0, 0, cv2.BORDER_REPLICATE)
    small = cv2.resize(padded, None, fx=1 / by, fy=1 / by, interpolation=cv2.INTER_AREA)
    expected = small if way == 1 else np.rot90(small, -1)
    assert frame.image.shape == expected.shape and np.abs(frame.image.astype(int) - expected).mean() < 6
    width, height = (240, 161) if way == 1 else (161, 240)
    assert frame.file_size == (width, height) and frame.scale == by
    media = open_media([str(tmp_path / "a.jpg")], tmp_path / "out", upright=True)
    (face,) = face_finder(PredictSpec(boxes="whole"), media, print)(frame)
    row = row_of(frame, 0, face, None, np.zeros(3), np.zeros(3), 1.0)
    assert [row[name] for name in ("x1", "y1", "x2", "y2")] == [0, 0, width, height]


def test_boxes_of_a_file_are_in_pixels_of_the_picture_however_it_is_decoded(tmp_path):
    save(tmp_path / "a.jpg", cv2.resize(picture(5, 20, 30), (240, 160)), "JPEG")
    boxes = {"a.jpg": [{"bbox": [40, 20, 120, 100]}, {"bbox": [300, 20, 390, 100]}]}
    (tmp_path / "b.json").write_text(json.dumps(boxes))
    media = open_media([str(tmp_path / "a.jpg")], tmp_path / "out", upright=False, max_pixels=10_000)
    (frame,) = media.frames()
    assert isinstance(frame, Frame) and frame.scale == 2
    inside, outside = face_finder(PredictSpec(boxes=str(tmp_path / "b.json")), media, print)(frame)
    assert inside.box == Box(20, 10, 60, 50) and why_unusable(inside, frame, 1.0) == ""
    assert "box (300, 20, 390, 100) lies outside the 240 x 160 picture" in why_unusable(outside, frame, 1.0)


def test_a_large_picture_of_another_format_names_the_key_that_allows_it(tmp_path):
    save(tmp_path / "a.png", picture(0, 48, 64), "PNG")
    (said,) = looked_at(tmp_path / "a.png", out=tmp_path / "out", max_pixels=48 * 64 - 1)
    assert isinstance(said, Unusable) and "64 x 48 pixels" in said.said and "max_pixels=" in said.said
    (frame,) = looked_at(tmp_path / "a.png", out=tmp_path / "out", max_pixels=48 * 64)
    assert isinstance(frame, Frame)
    with pytest.raises(SpecError, match="max_pixels must lie in"):
        PredictSpec(max_pixels=1 << 40)


def test_a_reduced_jpeg_that_is_cut_off_is_told(tmp_path):
    stream = io.BytesIO()
    Pil.fromarray(picture(1, 160, 240)).save(stream, "JPEG")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    (said,) = looked_at(tmp_path / "a.jpg", out=tmp_path / "out", max_pixels=10_000)
    assert isinstance(said, Unusable) and "a.jpg is cut off" in said.said


def test_a_photograph_of_200_megapixels_keeps_its_orientation(tmp_path, monkeypatch):
    """Pillow refuses to open as much; only its header is asked."""
    exif = Pil.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.jpg", picture(1, 160, 240), "JPEG", exif=exif)
    monkeypatch.setattr(Pil, "MAX_IMAGE_PIXELS", 1000)
    (frame,) = looked_at(tmp_path / "a.jpg", out=tmp_path / "out", max_pixels=10_000)
    assert isinstance(frame, Frame) and frame.image.shape == (120, 80, 3) and Pil.MAX_IMAGE_PIXELS == 1000
