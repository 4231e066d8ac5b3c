"""Laws of videos: every frame of every kind of file, at its own time, here and in the drawn copy, and its sound."""

import itertools
import os
import re
import shutil
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageOps

from hpe_core.errors import SpecError, UserError
from tests.prediction.clips import HEIGHT, WIDTH, grey, greys, level, seen, sound_of, times_of, write_clip
from tests.servers import answering
from workflows.prediction import videos
from workflows.prediction.copies import DrawnVideo
from workflows.prediction.frames import Frame
from workflows.prediction.media import open_media
from workflows.prediction.videos import Clock

UNEVEN = [0, 40, 120, 1000, 1040, 1080, 3480, 3520]
EVEN = [40 * i for i in range(8)]
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


def opened(path: Path, out: Path, **more: bool):
    return open_media([str(path)], out, upright=True, **more)


def seconds(frames: list[Frame]) -> list[float]:
    return [float(frame.time or 0) for frame in frames]


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


@pytest.mark.parametrize(
    ("name", "codec", "sound", "rate", "kept"),
    [
        ("a.mp4", "libx264", "aac", 44_100, True),
        ("a.webm", "libvpx", "libopus", 48_000, True),
        ("a.ts", "libx264", "libmp3lame", 44_100, True),
        ("a.flv", "flv", "nellymoser", 11_025, False),
        ("a.mkv", "libx264", "pcm_u8", 16_000, False),
        ("a.mkv", "libx264", "flac", 44_100, True),
        ("a.mkv", "libx264", "pcm_s16le", 44_100, True),
        ("a.mkv", "libx264", "libmp3lame", 8_000, False),  # a kind that MP4 has, at a rate that it has not
        ("a.flv", "flv", "libmp3lame", 11_025, False),
    ],
)
def test_sound_is_kept(tmp_path, name, codec, sound, rate, kept):
    """As it is where MP4 holds its kind, else as AAC; and as long as it was."""
    path = write_clip(tmp_path / name, codec, UNEVEN, sound=sound, rate=rate)
    frames, said = seen(opened(path, tmp_path / "out"))
    copy = tmp_path / "out" / "a.mp4"
    assert said == [] and len(frames) == 8
    if kept:
        whole, bare = b"".join(sound_of(path)), b"".join(part[7:] for part in sound_of(path))
        assert b"".join(sound_of(copy)) in (whole, bare)
    with av.open(str(copy)) as file:
        (heard,) = file.streams.audio
        assert heard.codec_context.name == "aac" or kept
        assert float(heard.duration * heard.time_base) == pytest.approx(UNEVEN[-1] / 1000, abs=0.15)
        assert abs(float((heard.start_time or 0) * heard.time_base)) < 0.1
    np.testing.assert_allclose(times_of(copy), seconds(frames), atol=1e-6)


def samples_of(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(frame.samples for frame in file.decode(audio=0))


def test_the_last_packet_of_sound_is_heard_though_nobody_says_how_long_it_lasts(tmp_path):
    """Matroska says it of none but the last one's neighbours, and MP4 plays no packet of length 0."""
    path = write_clip(tmp_path / "a.mkv", "libx264", [40 * i for i in range(12)], sound="alac", rate=44_100)
    seen(opened(path, tmp_path / "out"))
    assert samples_of(tmp_path / "out" / "a.mp4") == samples_of(path) > 0


@pytest.mark.parametrize(("name", "sound"), [("a.ts", "aac"), ("a.mkv", "eac3"), ("b.mkv", "tta")])
def test_damaged_sound_is_left_out_and_counted_and_no_picture_is_lost(tmp_path, capsys, name, sound):
    """As recordings of broadcasts have it. Copied as it is, it would end the copy at a picture, without its index."""
    path = write_clip(tmp_path / name, "libx264", [40 * i for i in range(25)], sound=sound)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(audio=0) if packet.size]
    parts = packets[4:9:2] if sound != "tta" else packets
    for part in parts:
        at = data.find(part[:24])
        assert at > 0
        data[at : at + 24] = b"\xff\x00" * 12
    path.write_bytes(data)
    frames, said = seen(opened(path, tmp_path / "out"))
    assert said == [] and len(frames) == 25
    assert re.search(r"\d packets? of the sound left out as damaged", capsys.readouterr().err)
    copy = tmp_path / "out" / f"{path.stem}.mp4"
    with av.open(str(copy)) as file:
        assert len(list(file.decode(video=0))) == 25
    assert sound == "tta" or samples_of(copy) > 16_000


def test_sound_may_change_its_rate_in_its_midst(tmp_path):
    """As between the programmes of a broadcast: all of it becomes what it was in the beginning."""
    files = [
        write_clip(tmp_path / f"{rate}.mkv", "libx264", EVEN, sound="pcm_u8", rate=rate) for rate in (16_000, 8_000)
    ]
    with av.open(str(files[0])) as first, av.open(str(files[1])) as second:
        copy = DrawnVideo(tmp_path / "b.mp4", Fraction(1, 1000), first.streams.audio)
        for number, source in enumerate((first, second)):
            for packet in source.demux(audio=0):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + 280 * number, packet.dts + 280 * number
                    copy.hear(packet)
        copy.add(grey(0), Fraction(0))
        copy.add(grey(1), Fraction(1))
        copy.close()
    assert samples_of(tmp_path / "b.mp4") == pytest.approx(0.56 * 16_000, abs=2048)


def test_of_a_part_there_is_the_sound_of_that_part_and_none_where_nothing_is_drawn(tmp_path):
    path = write_clip(tmp_path / "a.mp4", "libx264", UNEVEN, sound="aac")
    video = opened(path, tmp_path / "out")
    for frame, _ in zip(video.frames(), range(4), strict=False):
        video.keep(frame, frame.image)
    video.close()
    with av.open(str(tmp_path / "out" / "a.mp4")) as file:
        heard = file.streams.audio[0]
        assert 0.9 < float(heard.duration * heard.time_base) < 1.2
    video = opened(path, tmp_path / "none", draw=False)
    assert len(list(video.frames())) == 8
    video.close()
    assert not (tmp_path / "none").exists()


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


def test_a_copy_of_a_part_is_no_longer_than_it_though_all_sound_comes_first(tmp_path):
    with av.open(str(write_clip(tmp_path / "a.mp4", "libx264", UNEVEN, sound="aac"))) as source:
        copy = DrawnVideo(tmp_path / "b.mp4", Fraction(1, 1000), source.streams.audio)
        for packet in source.demux(source.streams.audio):
            copy.hear(packet)
        copy.add(grey(0), Fraction(0))
        copy.add(grey(1), Fraction(1), Fraction(1, 2))
        copy.close(whole=False)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert 1.4 < float(file.streams.audio[0].duration * file.streams.audio[0].time_base) < 1.6
        assert file.duration / 1e6 < 1.6


def test_a_video_that_starts_late_stays_with_its_sound(tmp_path):
    late = [at + 517 for at in EVEN]
    path = write_clip(tmp_path / "a.ts", "libx264", late, sound="aac")
    frames, _ = seen(opened(path, tmp_path / "out"))
    np.testing.assert_allclose(np.diff(seconds(frames)), 0.04, atol=1e-6)
    assert 0.5 < seconds(frames)[0] < 0.55
    np.testing.assert_allclose(times_of(tmp_path / "out" / "a.mp4"), seconds(frames), atol=2e-5)


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


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "share"),
    [("a.mkv", "libx264", 0.95), ("a.webm", "libvpx", 0.6), ("a.avi", "mpeg4", 0.6), ("a.mp4", "libx264", 0.7)],
)
def test_a_file_that_lost_frames_is_damaged(tmp_path, name, codec, share):
    front = {"movflags": "faststart"} if name == "a.mp4" else None
    path = cut(write_clip(tmp_path / name, codec, [40 * i for i in range(20)], options=front), share)
    frames, said = seen(opened(path, tmp_path / "out"))
    assert 0 < len(frames) < 20 and len(said) == 1 and said[0].startswith(f"{name} ends after {len(frames)} ")
    np.testing.assert_allclose(greys([f.image for f in frames]), [level(i) for i in range(len(frames))], atol=6)


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
LISTED = {"movflags": "dash+global_sidx"}  # with a list of the fragments in front


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", FRAGMENTS),
        ("b.mp4", "libx264", LISTED),
        ("a.ogv", "libvpx", {}),
        ("a.flv", "flv", {}),
        ("a.m2v", "mpeg2video", {}),
    ],
)
def test_wherever_such_a_file_is_cut_it_is_told_that_frames_are_lost(tmp_path, name, codec, options):
    """None of them counts its frames, so the last part of the file is what tells."""
    whole = write_clip(tmp_path / name, codec, [40 * i for i in range(20)], options=options, gop=5).read_bytes()
    assert seen(opened(tmp_path / name, tmp_path / "out"))[1] == []
    for share in (0.45, 0.6, 0.75, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        frames, said = seen(opened(tmp_path / name, tmp_path / "out"))
        lost = f"ends after {len(frames)} frames, before its end" if frames else "holds no frame"
        assert said == ([f"{name} {lost}"] if len(frames) < 20 else []), share


def boxes_of(data: bytes) -> list[tuple[bytes, int, int]]:
    """(kind, start, end) of an MP4 file's outer parts."""
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], at, at + length))
        at += length
    return found


@pytest.mark.parametrize("options", [FRAGMENTS, LISTED])
def test_a_fragment_that_is_missing_as_a_whole_is_told_where_a_list_counts_it(tmp_path, options):
    path = write_clip(tmp_path / "a.mp4", "libx264", [40 * i for i in range(20)], options=options, gop=5)
    data = path.read_bytes()
    *_, last = [start for kind, start, _ in boxes_of(data) if kind == b"moof"]
    path.write_bytes(data[:last])
    frames, said = seen(opened(path, tmp_path / "out"))
    assert 0 < len(frames) < 20 and bool(said) == (options == LISTED)
    (after,) = [end for kind, start, end in boxes_of(data) if start == last]
    path.write_bytes(data[:after])  # its frames are listed, and none of them is there
    assert "before its end" in seen(opened(path, tmp_path / "out"))[1][0]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_that_was_cut_before_its_index_is_one_sentence_that_says_so(tmp_path, name):
    path = write_clip(tmp_path / name, "libx264", EVEN)
    path.write_bytes(path.read_bytes()[: 60 if name == "a.mkv" else 700])
    with pytest.raises(SpecError, match=f"{name} .*a part of it is missing: it was cut off"):
        opened(path, tmp_path / "out")
    path.write_bytes(b"no video")
    with pytest.raises(SpecError, match=f"{name} cannot be opened as a video: [^;]*$"):
        opened(path, tmp_path / "out")


def test_a_bare_stream_begins_with_its_first_frame(tmp_path):
    """It has no clock of its own; FFmpeg gives its first frame the time of the second one."""
    frames, said = seen(opened(write_clip(tmp_path / "a.m2v", "mpeg2video", EVEN), tmp_path / "out"))
    assert said == []
    np.testing.assert_allclose(seconds(frames), np.array(EVEN) / 1000, atol=1e-6)


def test_damaged_frames_are_left_out_and_counted(tmp_path):
    path = write_clip(tmp_path / "a.mjpeg", "mjpeg", EVEN)
    data = bytearray(path.read_bytes())
    third = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"][2]
    data[third + 300 : third + 340] = b"\xff" * 40
    path.write_bytes(data)
    frames, said = seen(opened(path, tmp_path / "out"))
    assert len(frames) == 7 and said == ["a.mjpeg has 1 damaged frame, left out"]


def test_a_recording_that_begins_between_two_pictures_is_sound(tmp_path):
    path = write_clip(tmp_path / "a.ts", "libx264", [40 * i for i in range(60)], gop=10)
    data = path.read_bytes()
    start = len(data) // 3 // 188 * 188
    path.write_bytes(data[start:])
    frames, said = seen(opened(path, tmp_path / "out"))
    assert said == [] and 20 < len(frames) < 60


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


@pytest.mark.parametrize("flipped", [(2, 0x80), (2, 0x20), (3, 0x40)])
def test_a_stamp_that_is_damaged_moves_its_own_frame_alone(tmp_path, flipped):
    """Every fourth one of a transport stream lies seconds or hours before or after the truth."""
    path = write_clip(tmp_path / "a.mts", "libx264", [40 * i for i in range(50)], gop=5, begin=60_000)
    byte, bits = flipped
    data, count = bytearray(path.read_bytes()), 0
    for start in range(0, len(data), 188):
        at = data.find(b"\x00\x00\x01\xe0", start, start + 188)
        if at > 0 and data[at + 7] & 0x80:
            count += 1
            data[at + 9 + byte - 1] ^= bits * (count % 4 == 0 and count < 50)
    path.write_bytes(data)
    frames, said = seen(opened(path, tmp_path / "out"))
    assert count == 50 and said == []
    np.testing.assert_allclose(seconds(frames), 0.04 * np.arange(50), atol=0.05)
