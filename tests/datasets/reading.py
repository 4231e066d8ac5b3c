"""What tests of readers share: opening one, and asking what it says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpe_core.datasets.base import Annotation, DatasetError, FaceRef, Rejected, Source
from hpe_core.datasets.plan import plan_dataset
from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import Box
from hpe_core.spec.data import DatasetSpec, DataSpec

MARKS = np.random.default_rng(11).uniform([30, 10], [70, 70], (68, 2))  # (68, 2) landmarks of a face
FACES = [
    {"face": 39341, "file": "image00002.jpg", "rect": (10, 20, 60, 50), "pose": (0.1, -0.5, 0.25)},
    {"face": 39342, "file": "image00002.jpg", "rect": (70, 5, 40, 45), "pose": (-0.2, 1.0, -1.5)},
    {"face": 7, "file": "image00013.jpg", "rect": (-5, 0, 90, 95), "pose": (6.0, 0.0, 0.0)},
]
ROW: dict[str, Any] = {"path": "pictures/a.png", "pitch": 10.0, "yaw": -20.5, "roll": 3.0}
ROW |= {"x1": 5, "y1": 6.5, "x2": 50, "y2": 60}


def source(reader: str, root: Path, **more: object) -> Source:
    return open_source(DatasetSpec(reader=reader, root=str(root), **more))


def loaded(opened: Source) -> dict[str, Annotation]:
    return {ref.sample_id: opened.load(ref)[0] for ref in opened.refs()}


def only(opened: Source) -> FaceRef:
    (ref,) = opened.refs()
    return ref


def rejected(opened: Source, ref: FaceRef | None = None) -> tuple[str, str]:
    """(reason, sentence) of a face, by default the only one."""
    with pytest.raises(Rejected) as caught:
        opened.load(ref or only(opened))[0].known_box()
    assert "\n" not in caught.value.detail
    return caught.value.reason, caught.value.detail


def refusal(use: Callable[[], object]) -> str:
    with pytest.raises(DatasetError) as caught:
        use()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def corners(box: Box) -> tuple[float, float, float, float]:
    return box.x1, box.y1, box.x2, box.y2


def splits(spec: DatasetSpec, *, train: bool = True, test: bool = True) -> dict[str, str]:
    """Key of each face -> the split that the plan puts it into."""
    named = {"it": spec, "other": DatasetSpec("synthetic", count=4)}
    data = DataSpec(named, ("it",) if train else ("other",), ("it",) if test else ())
    plan = plan_dataset("it", open_source(spec), data)
    return {ref.key: job.split for job in plan.jobs for ref in job.refs}


def load_reason(opened: Source, ref: FaceRef) -> str:
    with pytest.raises(Rejected) as caught:
        opened.load(ref)[0].known_box()
    assert ref.sample_id in caught.value.detail
    return caught.value.reason


def one(*boxes: Sequence[float]) -> list[dict[str, Any]]:
    return [{"bbox": list(box), "type": "train"} for box in boxes]
