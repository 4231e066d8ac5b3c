"""Looks at frame after frame: faces, their poses, a row each, a drawn copy; and counts what became of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from hpe_core.learning.calibration import confidence
from hpe_core.predictor import HeadPosePredictor
from workflows.prediction.faces import Face, FindFaces, landmarks_of, poses_of, why_unusable
from workflows.prediction.keys import PredictSpec
from workflows.prediction.media.frames import Frame, Media, Unusable
from workflows.prediction.output import LANDMARKS, Row, drawn, landmark_text, row_of
from workflows.prediction.tracks import Tracks
from workflows.tracking.console import Console

TOLD_EVERY_S = 5.0  # where nobody knows how many frames there will be


@dataclass
class Tally:
    """What became of the pictures, and where the time went (seconds by step)."""

    frames: int = 0
    faces: int = 0
    without: int = 0  # pictures without a face
    unusable: int = 0  # pictures that cannot be read, and boxes that are none
    unsure: int = 0  # faces that were dropped, as the network is too unsure of their poses
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
        said += [f"{self.unsure:,} below min_confidence"] * (self.unsure > 0)
        total = sum(self.seconds.values())
        if self.frames and total > 0:
            steps = ", ".join(f"{step} {1e3 * spent / self.frames:.1f}" for step, spent in self.seconds.items())
            said.append(f"{self.frames / total:,.1f} {noun}s/s (ms a {noun}: {steps})")
        return ", ".join(said)


def predict(
    media: Media,
    find: FindFaces,
    predictor: HeadPosePredictor,
    spec: PredictSpec,
    put: Callable[[Row], None],
    tally: Tally,
) -> None:
    """Look at every frame: rows to `put`, drawn copies to `media`, counts and times into `tally`."""
    console, frames, told = Console(), media.frames(), time.monotonic()
    tracks = Tracks(spec.smooth) if media.moving else None
    looked = 0

    def show() -> None:
        """How far it is. Pictures that cannot be read do not count among the `frames` that are wanted."""
        nonlocal told
        total = min(media.total, spec.frames + looked - tally.frames) if spec.frames else media.total
        if total > 1:
            console.progress("poses", looked, max(total, looked), f"{media.noun}s")
        elif total == 0 and time.monotonic() - told > TOLD_EVERY_S:
            told = time.monotonic()
            console.say(tally.sentence(media.noun))

    while not spec.frames or tally.frames < spec.frames:
        with tally.timed("reading"):
            frame = next(frames, None)
        if frame is None:
            break
        looked += 1
        if isinstance(frame, Unusable):
            tally.unusable += 1
            console.say(f"unusable: {frame.said}")
            show()
            continue
        tally.frames += 1
        with tally.timed("faces"):
            faces = usable(find(frame), frame, predictor, spec, tally, console.say)
        with tally.timed("poses"):
            tally.without += not faces
            found, spread = poses_of(predictor, frame.image, faces, spec)
            sure = confidence(spread)
            kept = np.flatnonzero(sure >= spec.min_confidence)
            tally.unsure += len(faces) - len(kept)
            faces, found, spread, sure = [faces[at] for at in kept], found[kept], spread[kept], sure[kept]
            marks = landmarks_of(predictor, frame.image, faces, spec)
            people: Sequence[int | None] = [None] * len(faces)
            angles = found.astype(float)
            if tracks is not None:
                people, angles = tracks.follow([face.box for face in faces], angles, frame.seconds or 0.0)
        with tally.timed("writing"):
            for number, face in enumerate(faces):
                row = row_of(frame, number, face, people[number], angles[number], spread[number], sure[number])
                put(row | ({} if marks is None else {LANDMARKS: landmark_text(frame, marks[number])}))
            if spec.draw:
                media.keep(frame, drawn(frame.image, faces, angles, marks))
        tally.faces += len(faces)
        show()


def usable(
    faces: list[Face],
    frame: Frame,
    predictor: HeadPosePredictor,
    spec: PredictSpec,
    tally: Tally,
    say: Callable[[str], None],
) -> list[Face]:
    """The faces that the picture shows. Others are said and counted if a file names them; a detector only guessed."""
    shown = []
    for face in faces:
        why = why_unusable(face, frame, predictor, spec)
        if not why:
            shown.append(face)
        elif face.score is None:
            tally.unusable += 1
            say(f"unusable: {why}")
    return shown
