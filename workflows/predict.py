"""Poses of the faces in pictures, a video or a camera's view, drawn and as a table.

    python workflows/predict.py faces.jpg detector=fetch                            the shipped model
    python workflows/predict.py folder/ model=student.onnx out=seen
    python workflows/predict.py video.mp4 model=champion detector=yunet.onnx        the registry's best
    python workflows/predict.py 0                                                   camera 0, until Ctrl-C
    python workflows/predict.py rtsp://camera/stream smooth=0.2                     a stream, until Ctrl-C
    python workflows/predict.py aflw2000/ boxes=published.json --json               JSON lines, a face each

Faces come from a detector (`detector=FILE`, a YuNet ONNX file; `detector=fetch` downloads it once), from a file of
boxes as datasets take them (`boxes=FILE.json`), or are the whole picture (`boxes=whole`). Their pixels take the way of
training and evaluation: the canonical crop, then its central window. Drawn copies and poses.csv go into `out`. Angles
are degrees; red is the head's x axis, green points down, blue out of the face. The command names and counts a picture
that it cannot read, and goes on with the others.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hpe_core.datasets.files import printable
from hpe_core.errors import check, say
from hpe_core.predictor import HeadPosePredictor
from hpe_core.system.memory import keep_freed_memory
from workflows.engine.commandline import EXIT_STOPPED, CommandParser
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, guarded, tell
from workflows.prediction.faces import face_finder
from workflows.prediction.keys import WHOLE, PredictSpec, key_lines, spec_of
from workflows.prediction.loop import Tally, predict
from workflows.prediction.media.pictures import counted
from workflows.prediction.media.streams import is_address
from workflows.prediction.opening import local, open_media
from workflows.prediction.output import TABLE, ReaderGone, csv_table, json_lines
from workflows.prediction.resolve import model_files
from workflows.tracking.console import Console

CODES = {0: "done", EXIT_FAILED: "failed", EXIT_BAD_INPUT: "bad input, also if it is only one picture of many"}


def main(argv: Sequence[str]) -> int:
    words, spec, as_json = command_line(argv)
    keep_freed_memory()
    out = Path(os.path.expanduser(spec.out))
    upright = not spec.boxes or spec.boxes == WHOLE
    media = open_media(words, out, upright=upright, draw=spec.draw, max_pixels=spec.max_pixels)
    if media.left_out:
        say(f"left out, by their endings and content no pictures that are read: {counted(media.left_out)}")
    tally, stopped = Tally(), False
    with ExitStack() as opened:
        opened.callback(media.close)
        check(not spec.smooth or media.moving, "smooth is for a video, a stream or a camera; pictures are no series")
        find = face_finder(spec, media, Console().say)
        with model_files(spec.model, spec.tracking, spec.model_name) as path:
            predictor = HeadPosePredictor.load(path)
            say(f"model: {spec.model}, {path.name}, faces of {predictor.crop.size} px")
        if as_json:
            put = json_lines(spec.draw)
        else:
            put = opened.enter_context(csv_table(out, media.moving, predictor.has_landmarks))
        try:
            predict(media, find, predictor, spec, put, tally)
        except KeyboardInterrupt:  # how a camera is meant to end; what was seen is kept
            stopped = True
        except ReaderGone:  # `hpe predict 0 --json | head`
            pass
    kept = f"; in {printable(str(out))}" if spec.draw or not as_json else ""
    (say if as_json else tell)(tally.sentence(media.noun) + kept)
    if stopped and not media.live:
        say("stopped before the end")
        return EXIT_STOPPED
    return EXIT_BAD_INPUT if tally.unusable else 0


def command_line(argv: Sequence[str]) -> tuple[list[str], PredictSpec, bool]:
    """(what to look at, keys, whether JSON is wanted). Raises SpecError that names the key."""
    parser = CommandParser(__doc__ or "", key_lines(), CODES)
    parser.add_argument("words", nargs="*", metavar="PICTURE | FOLDER | VIDEO | CAMERA | ADDRESS | key=value")
    parser.add_argument("--json", action="store_true", help=f"faces as JSON lines on standard output, not in {TABLE}")
    args = parser.parsed([local(word) for word in argv])
    shown = [word for word in args.words if "=" not in word or is_address(word) or os.path.exists(word)]
    return shown, spec_of([word for word in args.words if word not in shown]), bool(args.json)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
