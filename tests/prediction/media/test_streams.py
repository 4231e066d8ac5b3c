"""Laws of streams: the newest frame rather than a late one, back after a break, an end, and no secret in a word."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from hpe_core.errors import SpecError, shown
from tests.prediction.media.broadcast import motion_jpeg, ranged, rtsp, serving, without_length
from tests.prediction.media.clips import grey, greys, level, seen, sound_of, times_of, write_clip
from tests.servers import answering
from workflows.prediction.media import streams
from workflows.prediction.media.frames import Frame, Unusable
from workflows.prediction.media.streams import Stream, is_address
from workflows.prediction.media.videos import VideoFile
from workflows.prediction.opening import open_media

UNEVEN = [0, 40, 120, 4900, 9940]
JPEGS = [cv2.imencode(".jpg", grey(number))[1].tobytes() for number in range(9)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(streams, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(streams, "TRIES", 2)


def opened(address: str, out: Path):
    return open_media([address], out, upright=True)


@pytest.mark.parametrize("front", ["", "faststart"])
def test_a_video_at_a_web_address_is_a_video(tmp_path, front, capsys):
    """All of its frames with their sound, from a server that sends no parts, too; user and question stay unsaid."""
    options = {"movflags": front} if front else {}
    path = write_clip(tmp_path / "a.mp4", "libx264", UNEVEN, sound="pcm_s16le", options=options)  # larger than buffers
    data = path.read_bytes()
    with answering(lambda path: (200, data, len(data))) as port:
        video = opened(f"http://user:secret@127.0.0.1:{port}/cam/b.mp4?token=hidden", tmp_path / "out")
        assert isinstance(video, VideoFile) and not video.live
        frames, said = seen(video)
    assert said == [] and [float(frame.time or 0) for frame in frames] == [ms / 1000 for ms in UNEVEN]
    assert {frame.name for frame in frames} == {f"http://127.0.0.1:{port}/cam/b.mp4"}
    np.testing.assert_allclose(times_of(tmp_path / "out" / "b.mp4"), np.array(UNEVEN) / 1000, atol=1e-6)
    assert b"".join(sound_of(tmp_path / "out" / "b.mp4")) == b"".join(sound_of(path))
    told = capsys.readouterr().err
    assert "copied to this machine" in told and "secret" not in told and "hidden" not in told


def test_of_a_server_that_sends_parts_nothing_is_copied_and_the_password_goes_to_it_alone(tmp_path, capsys):
    data = write_clip(tmp_path / "a.mp4", "libx264", UNEVEN, sound="pcm_s16le").read_bytes()
    heads: list[str] = []
    with serving(ranged(data, heads)) as port:
        frames, said = seen(opened(f"http://user:secret@127.0.0.1:{port}/a.mp4", tmp_path / "out"))
    assert len(frames) == len(UNEVEN) and said == [] and capsys.readouterr().err == ""
    assert len(heads) > 1 and "Authorization: Basic dXNlcjpzZWNyZXQ=" in heads[-1]


INDEX_LAST, INDEX_FIRST, NO_INDEX = "", "faststart", "frag_keyframe+empty_moov"


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(
    ("name", "codec", "flags"),
    [
        ("a.mp4", "libx264", INDEX_LAST),
        ("a.mp4", "libx264", INDEX_FIRST),
        ("a.mp4", "libx264", NO_INDEX),
        ("a.mkv", "libx264", ""),
        ("a.mpg", "mpeg2video", ""),
        ("a.flv", "flv", ""),  # an ending of cameras, too, but it says how long it is
    ],
)
def test_a_file_that_a_server_sends_without_its_length_is_a_file(tmp_path, name, codec, flags, chunked):
    options = {"movflags": flags} if flags else {}
    ms = [40 * i for i in range(60)]
    data = write_clip(
        tmp_path / name, codec, ms, sound="pcm_s16le" * (not flags and codec == "libx264"), options=options
    )
    with serving(without_length(data.read_bytes(), chunked=chunked)) as port:
        video = opened(f"http://127.0.0.1:{port}/b{data.suffix}?token=hidden", tmp_path / "out")
        assert isinstance(video, VideoFile)
        frames, said = seen(video)
    assert said == [] and [frame.number for frame in frames] == list(range(60))
    assert all(abs(grey - level(i)) < 9 for i, grey in enumerate(greys([frame.image for frame in frames])))


@pytest.mark.parametrize("chunked", [True, False])
def test_a_transport_stream_without_a_length_that_comes_at_once_is_told_and_not_opened_again(tmp_path, chunked):
    """It could be a camera's, so frames are passed over."""
    data = write_clip(tmp_path / "a.ts", "mpeg2video", [40 * i for i in range(60)])
    with serving(without_length(data.read_bytes(), chunked=chunked)) as port:
        stream = opened(f"http://127.0.0.1:{port}/a.ts", tmp_path / "out")
        assert isinstance(stream, Stream)
        frames, said = seen(stream)
    assert len(said) == 1 and "download it and name the copy" in said[0] and frames[-1].number <= 59


def test_who_looks_slowly_sees_the_newest_frame_and_hears_what_was_missed(tmp_path, capsys):
    with serving(motion_jpeg([JPEGS[i % 9] for i in range(200)], 0.01)) as port:
        stream = opened(f"http://127.0.0.1:{port}/", tmp_path)
        assert isinstance(stream, Stream) and stream.live and stream.total == 0
        frames: list[Frame] = []
        began = time.monotonic()
        for frame in stream.frames():
            assert isinstance(frame, Frame)
            late = time.monotonic() - began - float(frame.time or 0)
            assert abs(late) < 0.8, "an old frame, or a time that nobody measured"
            assert abs(greys([frame.image])[0] - level(frame.number)) < 6
            frames.append(frame)
            if len(frames) == 6:
                break
            time.sleep(0.15)
        stream.close()
    numbers = [frame.number for frame in frames]
    assert numbers == sorted(set(numbers)) and numbers[-1] > 12
    assert "frames were passed over so as not to lag behind" in capsys.readouterr().err


def test_a_stream_that_breaks_off_is_opened_again_and_in_the_end_given_up(tmp_path, capsys):
    served: list[int] = []
    feed = motion_jpeg(JPEGS[:4], 0.02)

    def at_times(connection) -> None:
        served.append(1)
        if len(served) <= 3:  # to look what it is, then twice more
            feed(connection)

    with serving(at_times) as port:
        stream = opened(f"http://user:secret@127.0.0.1:{port}/live?key=hidden", tmp_path)
        frames, said = seen(stream)
    assert len(said) == 1 and "broke off after" in said[0] and "did not come back" in said[0]
    assert len(served) == 5 and frames[-1].number >= 8  # three times four frames; two tries in vain
    told = capsys.readouterr().err
    assert "try 1 of 2" in told and "try 2 of 2" in told and "secret" not in told + said[0] and "hidden" not in told
    times = [float(frame.time or 0) for frame in frames]
    assert times == sorted(set(times))
    np.testing.assert_allclose(times_of(stream._copy.path), times, atol=2e-5)


def test_rtsp_is_seen_at_the_times_of_its_stamps(tmp_path):
    ms = [40 * i for i in range(50)]
    data = write_clip(tmp_path / "a.ts", "mpeg2video", ms, gop=5, begin=7_000_000).read_bytes()
    with serving(rtsp(data, 0.005)) as port:
        stream = opened(f"rtsp://user:secret@127.0.0.1:{port}/cam", tmp_path / "out")
        frames, said = [], []
        for one in stream.frames():
            if isinstance(one, Unusable):
                said.append(one.said)
                break
            frames.append(one)
            if len(frames) == 12:
                break
        stream.close()
    assert len(frames) == 12 and said == [] and frames[0].name == f"rtsp://127.0.0.1:{port}/cam"
    assert all(min(abs(one - level(i)) for i in range(9)) < 6 for one in greys([frame.image for frame in frames]))
    steps = np.diff([float(frame.time or 0) for frame in frames])
    assert (steps > 0).all() and float(frames[0].time or 0) < 2


def test_after_a_break_time_goes_on_as_the_clock_does(tmp_path, monkeypatch):
    """Though the stamps begin anew."""
    monkeypatch.setattr(streams, "FIRST_WAIT_S", 0.6)
    data = write_clip(tmp_path / "a.ts", "mpeg2video", [40 * i for i in range(6)], gop=1).read_bytes()
    with serving(rtsp(data, 0.001)) as port:
        stream = opened(f"rtsp://127.0.0.1:{port}/cam", tmp_path / "out")
        times = {}
        for one in stream.frames():
            assert isinstance(one, Frame)
            times[one.number] = float(one.time or 0)
            if one.number >= 6:
                break
        stream.close()
    assert times[min(times)] < 0.5 and times[max(times)] > 0.6


@pytest.mark.parametrize("word", ["http://127.0.0.1:9/a.mp4?key=hidden", "rtsp://user:secret@127.0.0.1:9/a"])
def test_an_address_that_does_not_answer_is_one_sentence_without_secrets(tmp_path, word):
    assert is_address(word)
    with pytest.raises(SpecError, match="cannot be opened as a video: Connection refused") as caught:
        opened(word, tmp_path)
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value) and shown(word) in str(caught.value)


@pytest.mark.parametrize("password", ["secret", "sec#ret", "sec/ret", "sec?ret", "sec@ret"])
def test_a_password_is_in_no_line_whatever_signs_it_has(password):
    said = shown(f"rtsp://admin:{password}@cam.local/1/a?key=hidden")
    assert said == "rtsp://cam.local/1/a"


def test_a_page_is_no_video_and_a_stream_is_looked_at_alone(tmp_path):
    with (
        answering(lambda path: (404, b"<html>no</html>", 15)) as port,
        pytest.raises(SpecError, match="cannot be opened as a video"),
    ):
        opened(f"http://127.0.0.1:{port}/a", tmp_path)
    with pytest.raises(SpecError, match="alone"):
        open_media(["http://127.0.0.1/a", "b.png"], tmp_path, upright=True)
    assert not is_address("http:/a") and not is_address("model=http://a/b") and not is_address("c://a.png")


def test_a_camera_shows_what_it_sees_in_red_green_and_blue_at_times_that_rise(tmp_path, monkeypatch):
    """OpenCV gives blue first; the drawn copy has each frame at its own time."""
    shown = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]

    class Capture:
        def __init__(self, number: int) -> None:
            self.left = [np.full((48, 64, 3), color[::-1], np.uint8) for color in shown]

        def isOpened(self) -> bool:
            return True

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, self.left.pop(0)) if self.left else (False, None)

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    frames, said = seen(open_media(["3"], tmp_path / "out", upright=True))
    assert said == ["camera 3 ends after 3 frames"] and [frame.number for frame in frames] == [0, 1, 2]
    assert [tuple(frame.image[0, 0].tolist()) for frame in frames] == shown
    times = [float(frame.time or 0) for frame in frames]
    assert times == sorted(set(times))
    np.testing.assert_allclose(times_of(tmp_path / "out" / "camera-3.mp4"), times, atol=2e-5)
