"""Poses of the faces in pictures, a video or a camera's view, drawn and as a table.

    python workflows/predict.py faces.jpg detector=yunet.onnx                       the registry's champion
    python workflows/predict.py folder/ model=student.onnx detector=fetch out=seen
    python workflows/predict.py video.mp4 model=models:/head-pose/3 detector=yunet.onnx
    python workflows/predict.py 0 model=student.onnx detector=yunet.onnx            camera 0, until Ctrl-C
    python workflows/predict.py aflw2000/ boxes=published.json --json               JSON lines, a face each

Faces are those of a detector (`detector=FILE`, a YuNet ONNX file; `detector=fetch` downloads it once), of a file of
boxes as datasets take them (`boxes=FILE.json`), or the whole picture (`boxes=whole`). Their pixels take the way of
training and evaluation: the canonical crop, then its central window. Drawn copies and poses.csv go into `out`. Angles
are degrees; red is the head's x axis, green points down, blue out of the face. A picture that cannot be read is named
and counted, and the others go on.
"""

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpe_core.errors import SpecError, check
from hpe_core.spec.data import DetectorSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.memory import keep_freed_memory
from hpe_core.system.remote import Remote, is_remote
from workflows.engine.commandline import EXIT_STOPPED, CommandParser
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, flatten, guarded, lasting_folder, tell

if TYPE_CHECKING:
    from hpe_core.geometry.crop import Box
    from hpe_core.predictor import HeadPosePredictor
    from workflows.prediction.media import Frame, Media

TABLE = "poses.csv"
WHOLE = "whole"
DECIMALS = {"x1": 2, "y1": 2, "x2": 2, "y2": 2, "score": 4}  # of boxes, pixels; angles have 4
CODES = {
    0: "done",
    EXIT_FAILED: "failed",
    EXIT_BAD_INPUT: "bad input, also if it is only one picture of many",
}


@dataclass(frozen=True)
class RegistrySpec:
    uri: str = ""  # empty: SQLite in the store


def key(default: Any, said: str) -> Any:
    """A field of `PredictSpec` with the line that --help has about it."""
    return field(default=default, metadata={"said": said})


@dataclass(frozen=True)
class PredictSpec:
    """Every key of the command."""

    model: str = key("champion", "a file or folder, or an alias, version or run in MLflow")
    detector: str = key("", "YuNet's ONNX file, or fetch: download it once")
    boxes: str = key("", "instead of a detector: FILE.json, or whole: every picture is one face")
    fit: bool = key(True, "detected boxes become such as the network was taught with; false: as they are")
    box_scale: float = key(1.0, "boxes grow by this, too, before the network sees them")
    min_score: float = key(0.6, "of the detector's faces, 0 to 1")
    side_px: int = key(640, "the longer side of a picture is scaled down to this for the detector")
    out: str = key("poses", "folder of drawn copies and table")
    draw: bool = key(True, "false: the table alone")
    frames: int = key(0, "at most so many pictures or frames; 0: all")
    model_name: str = key("head-pose", "the registered model")
    store: str = key("runs", "of the run whose registry is asked")
    mlflow: RegistrySpec = field(
        default=RegistrySpec(), metadata={"said": "MLflow's address; empty: SQLite in the store"}
    )

    def __post_init__(self) -> None:
        check(bool(self.model), "model names nothing")
        check(bool(self.out), "out names no folder")
        check(
            bool(self.detector) != bool(self.boxes),
            "say where the faces are: detector=FILE, detector=fetch, boxes=FILE.json or boxes=whole (one of them)",
        )
        check(0.2 <= self.box_scale <= 5, f"box_scale must lie in 0.2 ... 5, got {self.box_scale}")
        check(self.frames >= 0, f"frames must not be negative, got {self.frames}")

    @property
    def tracking(self) -> str:
        """The URI of MLflow, found as the pipeline finds it."""
        store = lasting_folder(Path.cwd()) / Path(self.store).expanduser()
        if is_remote(self.store):
            store = Remote(self.store).folder
        return self.mlflow.uri or f"sqlite:///{store / 'mlflow.db'}"


@dataclass(frozen=True)
class Face:
    """Where a face is, and how sure a detector was."""

    box: "Box"
    score: float | None = None


FindFaces = Callable[["Frame"], list[Face]]
Row = dict[str, Any]


@dataclass
class Tally:
    """What became of the pictures, and where the time went (seconds by step)."""

    frames: int = 0
    faces: int = 0
    without: int = 0  # pictures without a face
    unusable: int = 0  # pictures that cannot be read, and boxes that are none
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("reading", "faces", "poses", "writing"), 0.0)
    )

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - began

    def sentence(self, noun: str) -> str:
        """`39 pictures, 39 faces, ...` with rates."""
        said = [f"{self.frames:,} {noun}{'s' * (self.frames != 1)}", f"{self.faces:,} face{'s' * (self.faces != 1)}"]
        said += [f"{self.without:,} without a face"] * (self.without > 0)
        said += [f"{self.unusable:,} unusable"] * (self.unusable > 0)
        total = sum(self.seconds.values())
        if self.frames and total > 0:
            steps = ", ".join(f"{step} {1e3 * spent / self.frames:.1f}" for step, spent in self.seconds.items())
            said.append(f"{self.frames / total:,.1f} {noun}s/s (ms a {noun}: {steps})")
        return ", ".join(said)


def main(argv: Sequence[str]) -> int:
    words, spec, as_json = command_line(argv)
    keep_freed_memory()
    from workflows.prediction.media import open_media
    from workflows.prediction.resolve import model_files

    out = Path(spec.out).expanduser()
    media = open_media(words, out, upright=not spec.boxes or spec.boxes == WHOLE)
    if media.left_out:
        endings = ", ".join(f"{number} {ending}" for ending, number in sorted(media.left_out.items()))
        print(f"left out, by their endings no pictures: {endings}", file=sys.stderr)
    tally = Tally()
    with ExitStack() as opened:
        opened.callback(media.close)
        find = face_finder(spec, media)
        from hpe_core.predictor import HeadPosePredictor

        with model_files(spec.model, spec.tracking, spec.model_name) as path:
            predictor = HeadPosePredictor.load(path)
        put = print_row if as_json else opened.enter_context(csv_table(out))
        try:
            predict(media, find, predictor, spec, put, tally)
            stopped = False
        except KeyboardInterrupt:  # how a camera is meant to end; what was seen is kept
            stopped = True
    kept = f"; in {out}" if spec.draw or not as_json else ""
    print(tally.sentence(media.noun) + kept, file=sys.stderr if as_json else sys.stdout)
    if stopped and not media.live:
        print("stopped before the end", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_BAD_INPUT if tally.unusable else 0


def command_line(argv: Sequence[str]) -> tuple[list[str], PredictSpec, bool]:
    """(what to look at, keys, whether JSON is wanted). Raises SpecError that names the key."""
    parser = CommandParser(__doc__ or "", key_lines(), CODES)
    parser.add_argument("words", nargs="*", metavar="PICTURE | FOLDER | VIDEO | CAMERA | key=value")
    parser.add_argument("--json", action="store_true", help=f"faces as JSON lines on standard output, not in {TABLE}")
    args = parser.parse_intermixed_args(argv)
    shown = [word for word in args.words if "=" not in word or Path(word).exists()]
    keys = [word for word in args.words if word not in shown]
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(keys))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise SpecError(f"the keys cannot be read: {' '.join(str(error).split())}") from None
    assert isinstance(tree, dict)
    # Text as it is written: YAML would read the run 0123... as a number.
    texts = {key.name for key in dataclasses.fields(PredictSpec) if key.type is str}
    tree |= {key: value for key, _, value in (word.partition("=") for word in keys) if key in texts}
    return shown, build(PredictSpec, tree), bool(args.json)


def key_lines() -> str:
    """Every key with its default and what it means."""
    lines = ["keys, and what they are where nothing is said:"]
    for one in dataclasses.fields(PredictSpec):
        for name, value in flatten({one.name: to_dict(one.default)}).items():
            shown = json.dumps(value) if isinstance(value, bool) else value
            lines.append(f"  {f'{name}={shown}':<22}{one.metadata['said']}")
    return "\n".join(lines)


def face_finder(spec: PredictSpec, media: "Media") -> FindFaces:
    """The function that says where a frame's faces are. Raises SpecError for a detector or file that is none."""
    from hpe_core.geometry.crop import Box

    if spec.detector:
        from hpe_core.detection.detector import FaceDetector

        detect = FaceDetector(DetectorSpec(spec.detector, spec.min_score, spec.side_px))
        return lambda frame: [Face(found.box, found.score) for found in detect(frame.image)]
    if spec.boxes == WHOLE:
        return lambda frame: [Face(Box(0.0, 0.0, float(frame.image.shape[1]), float(frame.image.shape[0])))]
    from hpe_core.datasets.base import DatasetError
    from hpe_core.datasets.boxes import open_boxes

    check(media.noun == "picture", f"boxes={spec.boxes} is for pictures; {media.names[0]} needs a detector")
    file = Path(spec.boxes).expanduser()
    try:
        boxes = open_boxes(file)
        boxes.check_names(file, media.names)
    except DatasetError as error:
        raise SpecError(f"boxes={spec.boxes}: {error}") from None
    return lambda frame: [Face(box) for box in boxes.of(frame.name)]


def predict(
    media: "Media",
    find: FindFaces,
    predictor: "HeadPosePredictor",
    spec: PredictSpec,
    put: Callable[[Row], None],
    tally: Tally,
) -> None:
    """Look at every frame: rows to `put`, drawn copies to `media`, counts and times into `tally`."""
    from workflows.prediction.media import Unusable
    from workflows.tracking.console import LOG_EVERY_S, Console

    console, frames, told = Console(), media.frames(), time.monotonic()
    total = min(media.total, spec.frames or media.total)
    while not spec.frames or tally.frames < spec.frames:
        with tally.timed("reading"):
            frame = next(frames, None)
        if frame is None:
            break
        if isinstance(frame, Unusable):
            tally.unusable += 1
            console.say(f"unusable: {frame.said}")
            continue
        tally.frames += 1
        with tally.timed("faces"):
            faces = [face for face in find(frame) if usable(face, frame, tally, console.say)]
        with tally.timed("poses"):
            boxes = [face.box.scaled(spec.box_scale) for face in faces]
            poses = predictor.predict(frame.image, boxes, detected=bool(spec.detector) and spec.fit)
        with tally.timed("writing"):
            for number, face in enumerate(faces):
                put(row_of(frame, number, face, poses.angles[number], poses.spread[number]))
            if spec.draw:
                media.keep(frame, drawn(frame.image, faces, poses.angles))
        tally.faces += len(faces)
        tally.without += not faces
        if total > 1:
            done = tally.frames + tally.unusable
            console.progress("poses", done, max(total, done), f"{media.noun}s")
        elif total == 0 and time.monotonic() - told > LOG_EVERY_S:
            told = time.monotonic()
            console.say(tally.sentence(media.noun))


def usable(face: Face, frame: "Frame", tally: Tally, say: Callable[[str], None]) -> bool:
    """Whether the box is one that the picture shows, by the rule of the shards.

    One of a file that is not is told and counted; a detector's guess beyond the edge is merely no face.
    """
    from hpe_core.datasets.base import Rejected
    from hpe_core.datasets.files import printable
    from hpe_core.datasets.sandbox import check_box

    try:
        check_box(face.box, frame.image.shape[1], frame.image.shape[0], printable(frame.name))
    except Rejected as rejected:
        if face.score is None:
            tally.unusable += 1
            say(f"unusable: {rejected.detail}")
        return False
    return True


def row_of(frame: "Frame", number: int, face: Face, angles: Any, spread: Any) -> Row:
    """One face as the table has it: pixels, degrees, and the standard deviation of each predicted distribution."""
    from hpe_core.datasets.files import printable
    from hpe_core.geometry.rotation import ANGLE_NAMES

    box = face.box
    row: Row = {"file": printable(frame.name), "frame": frame.number, "seconds": frame.seconds, "face": number}
    row |= {"x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2, "score": face.score}
    row |= dict(zip(ANGLE_NAMES, map(float, angles), strict=True))
    row |= {f"{name}_spread": float(value) for name, value in zip(ANGLE_NAMES, spread, strict=True)}
    return {key: round(v, DECIMALS.get(key, 4)) if isinstance(v, float) else v for key, v in row.items()}


def drawn(image: Any, faces: Sequence[Face], angles: Any) -> Any:
    """The picture with each face's axes: as long as half the box's longer side, thick by its shorter one."""
    from hpe_core.geometry.draw import draw_axes

    for face, pose in zip(faces, angles, strict=True):
        width, height = face.box.width, face.box.height
        thick = max(1, round(min(width, height) / 40))
        image = draw_axes(image, pose, face.box.center, 0.5 * max(width, height), thick)
    return image


@contextmanager
def csv_table(out: Path) -> Iterator[Callable[[Row], None]]:
    """Writes rows into the table, each at once: what was seen outlives an interruption."""
    from hpe_core.geometry.rotation import ANGLE_NAMES

    columns = ["file", "frame", "seconds", "face", "x1", "y1", "x2", "y2", "score", *ANGLE_NAMES]
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = open(out / TABLE, "w", newline="", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed below
    except OSError as error:
        raise SpecError(f"{out / TABLE} cannot be written: {error.strerror}") from None
    with stream:
        writer = csv.DictWriter(stream, [*columns, *(f"{name}_spread" for name in ANGLE_NAMES)])
        writer.writeheader()
        yield writer.writerow


def print_row(row: Row) -> None:
    tell(json.dumps(row))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
