"""Laws of videos: every frame of every kind of file, at its own time, here and in the drawn copy."""

import itertools
import os
import shutil
import struct
import sys
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageOps

from hpe_core.errors import SpecError, UserError
from tests.prediction.media import clips
from tests.prediction.media.clips import (
    EVEN,
    HEIGHT,
    UNEVEN,
    WIDTH,
    cut,
    grey,
    greys,
    level,
    opened,
    seconds,
    seen,
    times_of,
    write_clip,
)
from tests.servers import answering
from workflows.prediction.media import videos
from workflows.prediction.media.videos import Clock

CODECS = {
    ".mp4": "libx264",
    ".m4v": "mpeg4",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".webm": "libvpx",
    ".ts": "libx264",
    ".flv": "flv",
    ".wmv": "wmv2",
    ".avi": "mpeg4",
    ".mpg": "mpeg1video",
    ".mts": "mpeg2video",
    ".m2ts": "mpeg2video",
    ".3gp": "h263",
    ".ogv": "libvpx",
    ".mjpeg": "mjpeg",
    ".vob": "mpeg2video",
    ".y4m": "wrapped_avframe",
}
HOLDS_TIMES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".flv", ".wmv")


@pytest.mark.parametrize("ending", CODECS)
def test_frames_and_times_of_every_ending_are_those_that_were_written(tmp_path, ending):
    ms = UNEVEN if ending in HOLDS_TIMES else EVEN
    path = write_clip(tmp_path / f"a{ending}", CODECS[ending], ms)
    frames, said = seen(opened(path, tmp_path / "out"))
    assert said == [] and [frame.number for frame in frames] == list(range(8))
    np.testing.assert_allclose(greys([frame.image for frame in frames]), [level(i) for i in range(8)], atol=6)
    np.testing.assert_allclose(seconds(frames), np.array(ms) / 1000, atol=1e-3)
    copy = tmp_path / "out" / "a.mp4"
    np.testing.assert_allclose(times_of(copy), seconds(frames), atol=1e-6)
    with av.open(str(copy)) as file:  # it lasts until the last frame is over
        assert file.duration / 1e6 == pytest.approx(ms[-1] / 1000 + 0.04, abs=0.06)
        images = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    np.testing.assert_allclose(greys(images), [level(i) for i in range(8)], atol=8)


@pytest.mark.parametrize("sound", ["", "aac"])
def test_time_begins_where_the_file_does(tmp_path, sound):
    """Recordings begin at any hour of their clock."""
    path = write_clip(tmp_path / "a.ts", "libx264", UNEVEN, sound=sound, begin=5_000)
    frames, _ = seen(opened(path, tmp_path / "out"))
    np.testing.assert_allclose(seconds(frames), np.array(UNEVEN) / 1000, atol=0.03 if sound else 1e-9)
    np.testing.assert_allclose(times_of(tmp_path / "out" / "a.mp4"), seconds(frames), atol=2e-5)
    if sound:
        with av.open(str(tmp_path / "out" / "a.mp4")) as file:
            (heard,) = file.streams.audio
            assert abs(float(heard.start_time * heard.time_base)) < 0.05


@pytest.mark.parametrize("color", [(200, 40, 40), (40, 200, 40), (40, 40, 200)])
def test_red_is_red_in_the_frame_and_in_the_drawn_copy(tmp_path, color, monkeypatch):
    """A network that learnt from red faces is shown red ones, not blue ones."""
    monkeypatch.setattr(clips, "grey", lambda number: np.full((HEIGHT, WIDTH, 3), color, np.uint8))
    frames, _ = seen(opened(write_clip(tmp_path / "a.mp4", "libx264", EVEN), tmp_path / "out"))
    with av.open(str(tmp_path / "out" / "a.mp4")) as file:
        copies = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == len(copies) == len(EVEN)
    for image in [*(frame.image for frame in frames), *copies]:
        np.testing.assert_allclose(image.mean((0, 1)), color, atol=12)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_telephones_video_stands_upright(tmp_path, degrees):
    path = write_clip(tmp_path / "a.mp4", "libx264", EVEN, turned=degrees)
    frames, _ = seen(opened(path, tmp_path / "out"))
    capture = cv2.VideoCapture(str(path))
    for frame in frames:
        expected = capture.read()[1][..., ::-1]
        assert frame.image.shape == expected.shape == ((WIDTH, HEIGHT, 3) if degrees % 180 else (HEIGHT, WIDTH, 3))
        assert np.abs(frame.image.astype(int) - expected).mean() < 8
    assert frames[0].image[5, 5].max() < 60  # its white corner is elsewhere
    with av.open(str(tmp_path / "out" / "a.mp4")) as file:
        assert next(file.decode(video=0)).to_ndarray(format="rgb24").shape == frames[0].image.shape


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_each_pixel_is_seen_where_the_display_matrix_puts_it(tmp_path, degrees, mirrored):
    """Front cameras of telephones mirror. (x, y) is seen at (a x + c y, b x + d y), says the format of the file."""
    path = write_clip(tmp_path / "a.mp4", "libx264", EVEN[:2], turned=degrees, mirrored=mirrored)
    data = path.read_bytes()
    matrix = data[data.index(b"tkhd") + 44 :][:20] if degrees or mirrored else struct.pack(">5i", 1, 0, 0, 0, 1)
    a, b, _, c, d = np.sign(struct.unpack(">5i", matrix)).tolist()
    (image, *_), said = seen(opened(path, tmp_path / "out"))
    x, y = -0.5, -0.5  # the white corner, from the middle
    white = a * x + c * y, b * x + d * y
    shape = (WIDTH, HEIGHT, 3) if degrees % 180 else (HEIGHT, WIDTH, 3)
    assert said == [] and image.image.shape == shape
    for right, low in itertools.product((-0.5, 0.5), repeat=2):
        corner = image.image[-5 if low > 0 else 5, -5 if right > 0 else 5]
        assert (corner.min() > 200) == ((right, low) == white), (right, low)


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        (Fraction(16, 11), (HEIGHT, 256, 3)),
        (Fraction(3, 4), (192, WIDTH, 3)),
        (Fraction(1), (HEIGHT, WIDTH, 3)),
        (Fraction(1, 400), (HEIGHT, WIDTH, 3)),  # nobody means that
    ],
)
@pytest.mark.parametrize("degrees", [0, 90])
def test_pixels_that_are_no_squares_are_seen_as_they_are_meant(tmp_path, aspect, shape, degrees):
    """Of a DVD a face is a third too narrow otherwise, and its pose another one."""
    path = write_clip(tmp_path / "a.mp4", "libx264", EVEN[:3], aspect=aspect, turned=degrees)
    frames, said = seen(opened(path, tmp_path / "out"))
    shape = (shape[1], shape[0], 3) if degrees else shape
    assert said == [] and all(frame.image.shape == shape for frame in frames)
    with av.open(str(tmp_path / "out" / "a.mp4")) as file:
        assert file.streams.video[0].sample_aspect_ratio in (None, 1)
        assert next(file.decode(video=0)).to_ndarray(format="rgb24").shape == shape


def test_a_bare_stream_begins_with_its_first_frame(tmp_path):
    """It has no clock of its own; FFmpeg gives its first frame the time of the second one."""
    frames, said = seen(opened(write_clip(tmp_path / "a.m2v", "mpeg2video", EVEN), tmp_path / "out"))
    assert said == []
    np.testing.assert_allclose(seconds(frames), np.array(EVEN) / 1000, atol=1e-6)


@pytest.mark.parametrize("kind", ["webp", "png"])
@pytest.mark.parametrize("way", [3, 5, 6])
def test_animations_stand_upright(tmp_path, kind, way):
    images, exif = [Pil.fromarray(grey(i)) for i in range(3)], Pil.Exif()
    exif[0x0112] = way
    images[0].save(tmp_path / "a.dat", kind, save_all=True, append_images=images[1:], duration=100, exif=exif)
    frames, _ = seen(opened(tmp_path / "a.dat", tmp_path / "out"))
    for number, frame in enumerate(frames):
        held = Pil.fromarray(grey(number))
        held.getexif()[0x0112] = way
        expected = np.asarray(ImageOps.exif_transpose(held)).astype(int)
        assert frame.image.shape == expected.shape and np.abs(frame.image - expected).mean() < 5
    assert len(frames) == 3


@pytest.mark.parametrize("kind", ["webp", "gif", "png", "avif"])
def test_animations_are_seen_frame_by_frame(tmp_path, kind):
    stay = [100] * 5 if kind == "avif" else [100, 50, 300, 0, 70]  # 0 means 100, as in browsers
    images = [Pil.fromarray(grey(i)) for i in range(5)]
    how = {"lossless": True} if kind == "webp" else {}
    images[0].save(tmp_path / "a.dat", kind, save_all=True, append_images=images[1:], duration=stay, **how)
    frames, said = seen(opened(tmp_path / "a.dat", tmp_path / "out"))
    assert said == [] and len(frames) == 5
    np.testing.assert_allclose(greys([frame.image for frame in frames]), [level(i) for i in range(5)], atol=4)
    starts = np.cumsum([0, *(ms or 100 for ms in stay)]) / 1000
    np.testing.assert_allclose(seconds(frames), starts[:-1], atol=1e-9)
    np.testing.assert_allclose(times_of(tmp_path / "out" / "a.mp4"), starts[:-1], atol=1e-6)
    with av.open(str(tmp_path / "out" / "a.mp4")) as file:
        assert file.duration / 1e6 == pytest.approx(starts[-1], abs=1e-3)
    if kind == "gif":
        frames, said = seen(opened(cut(tmp_path / "a.dat", 0.7), tmp_path / "cut"))
        assert 0 < len(frames) < 5 and "a.dat ends after" in said[0]


def test_a_video_is_known_by_its_content(tmp_path):
    write_clip(tmp_path / "a.mkv", "libx264", EVEN).rename(tmp_path / "a.jpg")
    frames, said = seen(opened(tmp_path / "a.jpg", tmp_path / "out"))
    assert len(frames) == 8 and said == []
    name = os.fsdecode(b"caf\xe9 a:b.mp4")
    write_clip(tmp_path / "b.mp4", "libx264", EVEN).rename(tmp_path / name)
    assert len(seen(opened(tmp_path / name, tmp_path / "out"))[0]) == 8


def test_without_pyav_one_sentence_names_the_extra_and_pictures_are_still_seen(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", "libx264", EVEN)
    Pil.fromarray(grey(0)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'head-pose-distillation\[video\]'"):
        opened(tmp_path / "a.mp4", tmp_path / "out")
    assert len(seen(opened(tmp_path / "a.png", tmp_path / "out"))[0]) == 1


def test_a_file_leads_nobody_into_the_network(tmp_path):
    asked: list[str] = []

    def answer(path: str) -> tuple[int, bytes, int]:
        asked.append(path)
        return 200, b"", 0

    with answering(answer) as port:
        part = f"http://127.0.0.1:{port}/a.ts"
        lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXT-X-MEDIA-SEQUENCE:0", "#EXTINF:1,", part, "#EXT-X-ENDLIST")
        for name in ("a.mp4", "a.m3u8"):
            (tmp_path / name).write_text("\n".join(lines) + "\n")
            with pytest.raises(SpecError, match=f"{name} cannot be opened as a video"):
                videos.opened(f"file:{tmp_path / name}", name, videos.FILES_ALONE)
        assert asked == []
        with pytest.raises(SpecError):  # the playlist is sound: without the limit it leads there
            videos.opened(f"file:{tmp_path / 'a.m3u8'}", "a", {"protocol_whitelist": "file,http,tcp"})
        assert set(asked) == {"/a.ts"}


def test_times_rise_whatever_a_file_says():
    """A missing one is filled in, a slip is one tick, and a jump back begins anew where the last frame ended."""
    stream = SimpleNamespace(time_base=Fraction(1, 1000), guessed_rate=25, average_rate=25)
    for given, expected in (
        ([100, None, 180, None], [0, 40, 80, 120]),
        ([100, 140, 140, 139, 220], [0, 40, 41, 42, 120]),
        ([5000, 5040, 100, 120, 180], [0, 40, 80, 100, 160]),
        ([None, None, None], [0, 40, 80]),
    ):
        clock = Clock(stream, Fraction(given[0] or 0, 1000))
        assert [clock.at(pts) * 1000 for pts in given] == expected


def test_a_song_with_a_cover_is_no_video_and_a_copy_that_cannot_be_written_is_named(tmp_path):
    write_clip(tmp_path / "a.mkv", "libx264", EVEN, sound="aac")
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "song.mkv"), "w") as song:
        stream = song.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                song.mux(packet)
    with pytest.raises(SpecError, match=r"song\.mkv holds no video"):
        opened(tmp_path / "song.mkv", tmp_path / "out")
    (tmp_path / "out").write_text("a file where the folder should be")
    video = opened(tmp_path / "a.mkv", tmp_path / "out")
    frame = next(iter(video.frames()))
    with pytest.raises(SpecError, match=r"the video .*a\.mp4 cannot be written: "):
        video.keep(frame, frame.image)
    video.close()


def test_the_public_cases(tmp_path, real_data):
    """Variable rate, Chrome's ticks, a transport stream: all frames, nothing damaged, copies as long as the file."""
    cases = real_data.parent / "cases"
    if not cases.is_dir():
        pytest.skip("the public cases are not here")
    for name, count, lasts in (("vfr.mkv", 12, 12.7), ("vfr.webm", 12, 12.7), ("chrome1k.webm", 20, 0.635)):
        shutil.copyfile(cases / "vfr-video" / name, tmp_path / name)
        frames, said = seen(opened(tmp_path / name, tmp_path / "out"))
        assert len(frames) == count and said == []
        with av.open(str(tmp_path / "out" / f"{name.partition('.')[0]}.mp4")) as file:
            assert file.duration / 1e6 == pytest.approx(lasts, abs=0.01)
    frames, said = seen(opened(cases / "video-endings" / "up.ts", tmp_path / "out"))
    assert len(frames) == 20 and said == []
