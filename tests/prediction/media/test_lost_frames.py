"""Laws of damaged videos: what is whole is seen, and that some is lost is said, once."""

import re

import numpy as np
import pytest

from hpe_core.errors import SpecError
from tests.prediction.media.clips import EVEN, cut, greys, level, opened, seconds, seen, write_clip
from workflows.prediction.media.videos import is_cut


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


def test_an_ogg_file_is_cut_at_each_end_of_a_page_and_inside_the_next_ones_mark(tmp_path):
    """There the part that is left looks whole: only the mark of the last page tells."""
    path = write_clip(tmp_path / "a.ogv", "libvpx", [40 * i for i in range(20)], gop=5)
    data = path.read_bytes()
    assert not is_cut(path)
    pages = [found.start() for found in re.finditer(b"OggS\x00", data)]
    assert len(pages) > 2
    for end in (start + some for start in pages[1:] for some in range(6)):
        path.write_bytes(data[:end])
        assert is_cut(path), end


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
