"""Laws of pictures: known by their content, boxes in pixels of the file at whatever scale it was decoded."""

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageOps

from hpe_core.datasets.decoding import pictures as decoding
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import Box
from hpe_core.predictor import HeadPosePredictor
from tests.archives import picture
from tests.prediction.asking import table
from workflows import predict
from workflows.prediction.faces import face_finder, why_unusable
from workflows.prediction.keys import PredictSpec
from workflows.prediction.media.frames import Frame, Unusable
from workflows.prediction.media.pictures import counted
from workflows.prediction.opening import open_media
from workflows.prediction.output import TABLE, row_of


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


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "AVIF", "JPEG"])
@pytest.mark.parametrize("way", range(1, 9))
def test_a_picture_is_turned_upright_once_whatever_its_format(tmp_path, kind, way):
    image, exif = cv2.resize(picture(3, 6, 8), (64, 48), interpolation=cv2.INTER_CUBIC), Pil.Exif()
    exif[0x0112] = way
    path = save(tmp_path / "a.dat", image, kind, exif=exif, quality=95)
    held = Pil.fromarray(image)
    held.getexif()[0x0112] = way
    expected = np.asarray(ImageOps.exif_transpose(held)).astype(int)
    (frame,) = looked_at(path, out=tmp_path / "out")
    assert isinstance(frame, Frame) and frame.image.shape == expected.shape
    assert np.abs(frame.image - expected).mean() < 6


def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path):
    kinds = {
        "a.nef": b"no raw file",
        "b.cr3": b"\0\0\0\x18ftypcrx " + bytes(99),
        "c.psd": b"8BPS" + bytes(99),
        "d.jp2": b"",
    }
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SpecError, match=rf"{name} is (a camera's raw file|Photoshop|JPEG 2000), which is not read"):
            open_media([str(tmp_path / name)], tmp_path / "out", upright=True)
    said = "1 .cr3 (a camera's raw file), 1 .jp2 (JPEG 2000), 1 .nef (a camera's raw file), 1 .psd (Photoshop)"
    with pytest.raises(SpecError, match=re.escape(f"it holds {said}")):
        open_media([str(tmp_path)], tmp_path / "out", upright=True)
    save(tmp_path / "e.tga", picture(0, 20, 30), "PNG")  # what it is says its content
    save(tmp_path / "f.dng", picture(0, 20, 30), "JPEG")
    media = open_media([str(tmp_path)], tmp_path / "out", upright=True)
    assert media.names == ["e.tga", "f.dng"] and counted(media.left_out) == said


def test_pages_that_are_not_looked_at_are_told(tmp_path, capsys):
    images = [Pil.fromarray(picture(seed, 20, 30)) for seed in range(3)]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
    images[0].save(tmp_path / "b.tif")
    for frame in looked_at(tmp_path, out=tmp_path / "out"):
        assert isinstance(frame, Frame) and np.array_equal(frame.image, np.asarray(images[0]))
    assert re.fullmatch(r"\S+a.tif has 3 pages; the first is looked at\n", capsys.readouterr().err)


def test_bitmaps_of_one_bit_are_pictures(tmp_path):
    (tmp_path / "a.pbm").write_bytes(b"P4\n8 8\n" + bytes(8))
    (tmp_path / "b").write_bytes(b"P1\n# mine\n2 2\n0 1 1 0\n")
    for path in sorted(tmp_path.iterdir()):
        (frame,) = looked_at(path, out=tmp_path / "out")
        assert isinstance(frame, Frame)


def test_a_pipe_a_device_and_a_loop_of_links_are_one_sentence_each(tmp_path):
    """Whoever opened the pipe would wait for ever, whatever its name."""
    for name in ("a.mp4", "a.jpg", "a"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(SpecError, match=rf"{name} is neither a file nor a folder$"):
            open_media([str(tmp_path / name)], tmp_path / "out", upright=True)
    with pytest.raises(SpecError, match=r"/dev/null is neither .*; a camera is named by its number"):
        open_media(["/dev/null"], tmp_path / "out", upright=True)
    for name, said in (("loop", "symbolic links"), ("x" * 300 + ".jpg", "name too long")):
        if name == "loop":
            (tmp_path / name).symlink_to(name)
        with pytest.raises(SpecError, match=f"{name} cannot be read: .*{said}"):
            open_media([str(tmp_path / name)], tmp_path / "out", upright=True)


def test_a_folder_of_such_things_gives_its_pictures_all_the_same(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    save(root / "a.png", picture(0, 20, 30), "PNG")
    (root / "loop.png").symlink_to("loop.png")
    (root / "round").symlink_to(root)
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "pipe.mp4")
    media = open_media([str(root)], root / "loop.png" / "out", upright=True)
    assert media.names == ["a.png", "loop.png", "pipe.jpg"] and media.left_out == {".mp4": 1}
    said = [one.said for one in media.frames() if isinstance(one, Unusable)]
    assert len(said) == 2 and "symbolic links" in said[0] and said[1].endswith("pipe.jpg is not a file")


def test_the_address_of_a_file_is_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a b=c.png", picture(0, 20, 30), "PNG")
    words, _, _ = predict.command_line([path.as_uri(), f"file://localhost{tmp_path}/b.png", "boxes=whole"])
    assert words == [str(path), str(tmp_path / "b.png")]
    with pytest.raises(SpecError, match="lies on another machine, nas"):
        predict.command_line(["file://nas/a.png"])
    for word in ("s3://bucket/a.mp4", "ftp://me:secret@host/a.mp4?key=1"):
        with pytest.raises(SpecError, match=r"(bucket|//host)/a.mp4 is no address that is read; .* rtsp") as caught:
            open_media([word], tmp_path / "out", upright=True)
        assert "secret" not in str(caught.value) and "key" not in str(caught.value)


def test_boxes_of_other_pictures_are_told_and_not_counted_as_no_faces(tmp_path):
    save(tmp_path / "a.png", picture(0, 20, 30), "PNG")
    (tmp_path / "b.json").write_text(json.dumps({"other/b.png": [{"bbox": [1, 1, 20, 20]}]}))
    media = open_media([str(tmp_path / "a.png")], tmp_path / "out", upright=False)
    with pytest.raises(SpecError, match=r"none of its entries .*: its first entry is 'other/b.png', .* a.png"):
        face_finder(PredictSpec(boxes=str(tmp_path / "b.json")), media, print)


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
    boxes = {"a.jpg": [{"bbox": [40, 20, 120, 100]}, {"bbox": [300, 20, 390, 100]}, {"bbox": [50, 20, 51.5, 60]}]}
    (tmp_path / "b.json").write_text(json.dumps(boxes))
    media = open_media([str(tmp_path / "a.jpg")], tmp_path / "out", upright=False, max_pixels=10_000)
    (frame,) = media.frames()
    assert isinstance(frame, Frame) and frame.scale == 2
    predictor, spec = HeadPosePredictor.load(), PredictSpec(boxes=str(tmp_path / "b.json"))
    inside, outside, thin = face_finder(spec, media, print)(frame)
    assert inside.box == Box(20, 10, 60, 50) and why_unusable(inside, frame, predictor, spec) == ""
    assert "box (300, 20, 390, 100) lies outside the 240 x 160" in why_unusable(outside, frame, predictor, spec)
    assert re.search(r"a\.jpg, decoded at 1/2 .*thinner than a pixel", why_unusable(thin, frame, predictor, spec))
    larger = replace(spec, box_scale=2.0)
    assert why_unusable(thin, frame, predictor, larger) == "", "the network is shown the scaled box"


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


@pytest.mark.parametrize("draw", [False, True])
def test_where_nobody_reads_the_rows_nobody_looks_on_unless_copies_are_drawn(here, draw, monkeypatch, capsys):
    """A camera would be looked at for ever."""
    Path("in").mkdir()
    for name in "abcde":
        save(Path("in", f"{name}.png"), picture(0, 60, 80), "PNG")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert predict.main(["in", "boxes=whole", "--json", f"draw={str(draw).lower()}"]) == 0
        monkeypatch.undo()
    looked, copies = (5, 5) if draw else (1, 0)
    assert f"{looked} picture{'s' * (looked > 1)}" in capsys.readouterr().err
    assert len(list(here.glob("poses/*.png"))) == copies


def test_a_picture_too_large_for_its_kind_of_file_is_told_and_the_others_are_drawn(here, capsys):
    """JPEG has no more than 65,500 pixels a side, and a copy of a kind that is not written is a JPEG."""
    Path("in").mkdir()
    for name, kind, width in (("a.ppm", "PPM", 66_000), ("b.webp", "PNG", 17_000), ("c.png", "PNG", 90)):
        save(Path("in", name), np.zeros((12, width, 3), np.uint8), kind)
    assert predict.main(["in", "boxes=whole"]) == 0
    assert [row["file"] for row in table()] == ["a.ppm", "b.webp", "c.png"]
    assert [path.name for path in Path("poses").iterdir() if path.name != TABLE] == ["c.png"]
    told = capsys.readouterr().err
    assert "a.ppm is not drawn: OpenCV writes no .jpg of 66000 x 12 pixels" in told
    assert "b.webp is not drawn: OpenCV writes no .webp of 17000 x 12 pixels" in told


def test_progress_counts_pictures_and_not_the_boxes_that_are_none(here, capsys):
    Path("in").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        save(Path("in", name), picture(0, 60, 80), "PNG")
    Path("in", "aa.png").write_bytes(b"")
    Path("b.json").write_text(json.dumps({"a.png": [{"bbox": [900, 9, 990, 99]}] * 5}))
    assert predict.main(["in", "boxes=b.json", "draw=false"]) == 2
    said = capsys.readouterr()
    assert re.findall(r"poses: (\d+) of (\d+) pictures", said.err) == [("1", "4"), ("4", "4")]
    assert "3 pictures, 0 faces, 3 without a face, 6 unusable" in said.out


def test_the_last_line_is_written_whatever_the_terminal_can_show(here, monkeypatch):
    """A name of other letters, and a reader that is gone, after all the work is done."""
    save(Path("a.png"), picture(0, 60, 80), "PNG")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert predict.main(["a.png", "boxes=whole", "draw=false", "out=顔\udcff"]) == 0
    assert shown.buffer.getvalue().endswith(b"; in \\u9854\\xff\n") and len(table(Path("顔\udcff"))) == 1
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert predict.main(["a.png", "boxes=whole", "draw=false"]) == 0
        monkeypatch.undo()
