"""Loads faces from other people's files in a child process that may crash or hang without harm.

The child decodes, crops and sends back the crop, never the whole picture. Answers come in order, a handful at a time.
If the child ends or hangs, a new one is asked face by face, so the first face without an answer is the culprit. After
two failures it is rejected: the first may have been the machine's doing. Pixels come back through memory that both
processes map, one place for each reference of a request; the pipe carries the rest of the row.

The child limits its address space against decompression bombs, and an alarm that ends it even inside C code sees to it
that it does not outlive a parent that was killed. Why not pebble: docs/libraries.md.
"""

import math
import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from hpe_core.datasets.base import FaceRef, FaceRow, Rejected, Source
from hpe_core.datasets.files import printable
from hpe_core.geometry.crop import Box, Image, canonical_crop, fault_of
from hpe_core.spec.data import CropSpec
from hpe_core.system.memory import keep_freed_memory

MEMORY_BYTES = 4 << 30
START_S = 120.0  # a child imports NumPy, OpenCV and Arrow; on a busy machine that takes its time
TRIES = 2
FACE_TIMEOUT_S = 20.0  # after which a face counts as hanging
REQUEST = 64  # faces in a request, and crops in the shared memory
HANDFUL, LATEST_S = 16, 0.2  # answers sent together, and the longest that one waits for the others
NO_PIXELS: Image = np.zeros((0, 0, 3), np.uint8)

Loaded = FaceRow | Rejected


def load_face(source: Source, ref: FaceRef, crop: CropSpec) -> FaceRow:
    """Load, check and crop one face. Raises Rejected, whatever went wrong."""
    try:
        return _load_face(source, ref, crop)
    except Rejected:
        raise
    except MemoryError:
        raise Rejected("too_large", f"{ref.sample_id} needs more memory than a picture may take") from None
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise Rejected("reader_failed", f"{ref.sample_id}: {type(error).__name__}: {said}") from error


def _load_face(source: Source, ref: FaceRef, crop: CropSpec) -> FaceRow:
    annotation, image = source.load(ref)
    pose = annotation.pose
    if not all(map(math.isfinite, pose)):
        raise Rejected("nan_pose", f"{ref.sample_id} has the pose {pose}")
    height, width = image.shape[:2]
    box = annotation.known_box()
    check_box(box, width, height, ref.sample_id, crop.box_scale)
    face = canonical_crop(image, box, crop)
    landmarks = None
    if annotation.landmarks is not None:
        seen = np.full(len(annotation.landmarks), np.nan) if annotation.visible is None else annotation.visible
        landmarks = np.column_stack([face.to_crop(annotation.landmarks), seen]).astype(np.float32)
    return FaceRow(ref.sample_id, ref.group, printable(ref.key), pose, face, landmarks)


def check_box(box: Box, width: int, height: int, name: str, box_scale: float = 1.0) -> None:
    """Raises Rejected if the box is no box or the picture shows too little of it, as `fault_of` has it."""
    fault = fault_of(box, width, height, box_scale)
    if fault is not None:
        raise Rejected(fault[0], f"{name}: {fault[1]}")


class Sandbox(AbstractContextManager["Sandbox"]):
    """A child process that loads faces of one source; started at the first use, replaced when it dies."""

    def __init__(self, source: Source, crop: CropSpec, *, timeout_s: float = 20.0, tries: int = TRIES) -> None:
        """`source` is pickled by reference: the child imports its module. `timeout_s` is for one face."""
        self._fetch = source.fetch
        self._crop = crop
        self._task = pickle.dumps((source, crop, timeout_s))
        self._timeout_s = timeout_s
        self._tries = tries
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: connection.Connection | None = None
        self._stderr: IO[bytes] | None = None
        self._pixels = np.empty(0, np.uint8)
        self._poll = select.poll()

    def load_many(self, refs: Sequence[FaceRef]) -> Iterator[Loaded]:
        """One FaceRow or Rejected for each reference, in order, as they are done.

        Raises RuntimeError if the child cannot start, RemoteError if the network fails: then no picture is to blame.
        Files of a remote archive are fetched here first, so the child waits for no network.
        """
        self._fetch(refs)
        done, failures, alone = 0, 0, False
        while done < len(refs):
            failure: Rejected | None = None
            for answer in self._answers(refs[done : done + HANDFUL] if alone else refs[done:], alone):
                if isinstance(answer, _Ended):
                    failure = answer.blame(refs[done], self._timeout_s)
                    break
                yield answer
                done, failures = done + 1, 0
            failures += alone and failure is not None
            if failure is not None and failures == self._tries:
                yield failure
                done, failures = done + 1, 0
            alone = failure is not None

    def _answers(self, refs: Sequence[FaceRef], alone: bool) -> Iterator["Loaded | _Ended"]:
        """Answers to `refs`; if the child ends or hangs, `_Ended` is the last. With `alone` none waits for others."""
        pipe = self._start()
        try:
            for start in range(0, len(refs), REQUEST):
                request = list(refs[start : start + REQUEST])
                pipe.send_bytes(pickle.dumps((request, 1 if alone else HANDFUL)))
                place = 0
                while place < len(request):
                    if not self._poll.poll(1000 * self._timeout_s):
                        self.close()
                        yield _Ended(None)
                        return
                    for answer in pickle.loads(pipe.recv_bytes()):
                        yield answer if isinstance(answer, Rejected) else _with(answer, self._pixels[place].copy())
                        place += 1
        except (EOFError, OSError):
            yield _Ended(self._reap())
        finally:
            # The caller has abandoned us half-way: the next one must not get answers that are still to come.
            if sys.exc_info()[0] is GeneratorExit:
                self.close()

    def _start(self) -> connection.Connection:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = connection.Pipe(duplex=True)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the child
        # The child must find what this process finds, in a Ray job's working directory, too.
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
        with theirs, tempfile.TemporaryFile() as shared:
            shared.truncate(REQUEST * self._crop.stored_size**2 * 3)
            self._pixels = _mapped(shared.fileno(), self._crop)
            descriptors = theirs.fileno(), shared.fileno()
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from hpe_core.datasets.sandbox import serve; serve{descriptors}"],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._pipe, self._poll = ours, select.poll()  # the pipe's own poll registers it anew for each answer
        self._poll.register(ours, select.POLLIN)
        try:
            ours.send_bytes(self._task)
            ready = ours.poll(START_S) and ours.recv_bytes() == b"ready"
        except (EOFError, OSError):
            ready = False
        if not ready:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(5)  # its last words come after it has closed the pipe
            self._stderr.seek(0)
            said = self._stderr.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
            self.close()
            raise RuntimeError(f"the decoding process does not start: {said[-1] if said else 'no message'}")
        return ours

    def _reap(self) -> int:
        """The exit status of a child that is ending."""
        assert self._child is not None
        try:
            status = self._child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = -signal.SIGPIPE
        self.close()
        return status

    def close(self) -> None:
        """End the child; a later `load_many` starts a new one."""
        if self._pipe is not None:
            self._pipe.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self._stderr is not None:
            self._stderr.close()
        self._child, self._pipe, self._stderr = None, None, None

    def __exit__(self, *error: object) -> None:
        self.close()


class _Ended(NamedTuple):
    """The child ended: with an exit status, or None if it was killed because it did not answer in time."""

    status: int | None

    def blame(self, ref: FaceRef, timeout_s: float) -> Rejected:
        name = f"{ref.sample_id} ({printable(ref.key)})"
        if self.status is None or self.status == -signal.SIGALRM:
            return Rejected("decoder_hung", f"{name} was not decoded within {timeout_s:g} s")
        how = f"exit status {self.status}"
        if self.status < 0:
            how = signal.strsignal(-self.status) or f"signal {-self.status}"
        return Rejected("decoder_crashed", f"{name} ended the process that decodes it: {how}")


def _with(face: FaceRow, pixels: Image) -> FaceRow:
    return replace(face, crop=replace(face.crop, pixels=pixels))


def _mapped(descriptor: int, crop: CropSpec) -> Image:
    """(REQUEST, stored, stored, 3) in the memory of an open file that two processes share."""
    block: Image = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
    return block.reshape(REQUEST, crop.stored_size, crop.stored_size, 3)


def serve(descriptor: int, shared: int) -> None:
    """The child's whole life: take the task, then answer requests until the parent is gone."""
    import resource

    import cv2

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    cv2.setNumThreads(1)
    keep_freed_memory()
    with connection.Connection(descriptor) as pipe:
        try:
            source, crop, timeout_s = pickle.loads(pipe.recv_bytes())
            pixels = _mapped(shared, crop)
            pipe.send_bytes(b"ready")
            while True:
                request, together = pickle.loads(pipe.recv_bytes())
                answers: list[Loaded] = []
                for place, ref in enumerate(request):
                    # Later than the parent's deadline: this is for orphans.
                    signal.setitimer(signal.ITIMER_REAL, 1.5 * timeout_s + 1)
                    if not answers:
                        began = time.monotonic()
                    try:
                        face = load_face(source, ref, crop)
                        pixels[place] = face.crop.pixels
                        answers.append(_with(face, NO_PIXELS))
                    except Rejected as rejected:
                        answers.append(Rejected(rejected.reason, rejected.detail))  # without its traceback's chain
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    if len(answers) >= together or ref is request[-1] or time.monotonic() > began + LATEST_S:
                        pipe.send_bytes(pickle.dumps(answers))
                        answers = []
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def load_directly(source: Source, crop: CropSpec, refs: Sequence[FaceRef]) -> Iterator[Loaded]:
    """`Sandbox.load_many` without the sandbox, for sources that read nobody's files."""
    source.fetch(refs)
    for ref in refs:
        try:
            yield load_face(source, ref, crop)
        except Rejected as rejected:
            yield rejected
