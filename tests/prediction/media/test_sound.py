"""Laws of the sound that a drawn copy keeps: all of it that is sound, at its own time, in a kind that MP4 has."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.prediction.media.clips import EVEN, UNEVEN, grey, opened, seconds, seen, sound_of, times_of, write_clip
from workflows.prediction.media.copies import DrawnVideo


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
