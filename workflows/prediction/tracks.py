"""Who is who from frame to frame, and a steadier pose along each person's track.

A face belongs to the track whose last box it overlaps most; the surest pairs are matched first. The pose is smoothed by
the one-euro filter (Casiez, Roussel, Vogel 2012, "1 Euro filter: a simple speed-based low-pass filter for noisy input
in interactive systems"): a low-pass whose cutoff rises with the speed, so a resting head is steady and a moving one is
followed. It works on rotations, along the shortest way from one to the next, since Euler angles jump at +-180 degrees.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from hpe_core.geometry.crop import Box, overlap
from hpe_core.geometry.rotation import Floats, euler_to_matrix, matrix_to_euler, nearer_branch

MIN_OVERLAP = 0.2  # with its last box, or a face is somebody else
MEMORY_S = 1.0  # a person who was away for longer comes back as another
SPEED_CUTOFF_HZ = 1.0  # of the low-pass on the speed, as the paper has it
BETA = 0.03  # Hz that the cutoff rises by, for each degree a second


class OneEuro:
    """The filter of one person's rotations; `rest_s` is the time constant of the low-pass for a head at rest."""

    def __init__(self, rest_s: float) -> None:
        self._cutoff = 1 / (2 * math.pi * rest_s)
        self._raw: Floats | None = None
        self._smooth: Floats = np.eye(3)
        self._speed: Floats = np.zeros(3)  # degrees a second, about the axes of the head
        self._time = 0.0

    def __call__(self, angles_deg: ArrayLike, time: float) -> Floats:
        """(pitch, yaw, roll) in degrees at `time`, in seconds, later than the last one -> smoothed ones."""
        from scipy.spatial.transform import Rotation  # takes longer than all else that the command imports

        raw = euler_to_matrix(angles_deg)
        passed = time - self._time
        if self._raw is None:
            self._smooth = raw
        elif passed > 0:
            speed = Rotation.from_matrix(self._raw.T @ raw).as_rotvec(degrees=True) / passed
            self._speed = self._speed + _share(SPEED_CUTOFF_HZ, passed) * (speed - self._speed)
            cutoff = self._cutoff + BETA * float(np.linalg.norm(self._speed))
            way = Rotation.from_matrix(self._smooth.T @ raw).as_rotvec(degrees=True)
            step = Rotation.from_rotvec(_share(cutoff, passed) * way, degrees=True)
            self._smooth = self._smooth @ step.as_matrix()
        self._raw, self._time = raw, time
        return nearer_branch(matrix_to_euler(self._smooth), angles_deg)


def _share(cutoff_hz: float, passed: float) -> float:
    """How much of a new value a low-pass takes over after so many seconds."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff_hz * passed))


@dataclass
class Track:
    number: int
    box: Box
    seen: float
    smoothed: OneEuro | None = field(repr=False)


class Tracks:
    """The people of a video; `smooth` is the filter's time constant in seconds, 0 for poses as they are."""

    def __init__(self, smooth: float) -> None:
        self._smooth, self._tracks, self._begun = smooth, list[Track](), 0
        self._last = -math.inf  # when faces were last looked for

    def follow(self, boxes: Sequence[Box], angles: Floats, time: float) -> tuple[list[int], Floats]:
        """The number of each face's track, and the (M, 3) poses in degrees, smoothed along it."""
        matched = self._matched(boxes, time)
        poses = np.asarray(angles, np.float64).reshape(-1, 3).copy()
        for face, track in enumerate(matched):
            if track.smoothed is not None:
                poses[face] = track.smoothed(poses[face], time)
        return [track.number for track in matched], poses

    def _matched(self, boxes: Sequence[Box], time: float) -> list[Track]:
        self._tracks = [one for one in self._tracks if one.seen == self._last or time - one.seen <= MEMORY_S]
        self._last = time
        pairs = [
            (shared, face, track)
            for face, box in enumerate(boxes)
            for track, known in enumerate(self._tracks)
            if (shared := overlap(box, known.box)) >= MIN_OVERLAP
        ]
        of_face: dict[int, Track] = {}
        taken: set[int] = set()
        for _, face, track in sorted(pairs, key=lambda pair: -pair[0]):
            if face not in of_face and track not in taken:
                of_face[face] = self._tracks[track]
                taken.add(track)
        for face, box in enumerate(boxes):
            if face not in of_face:
                of_face[face] = Track(self._begun, box, time, OneEuro(self._smooth) if self._smooth else None)
                self._tracks.append(of_face[face])
                self._begun += 1
            of_face[face].box, of_face[face].seen = box, time
        return [of_face[face] for face in range(len(boxes))]
