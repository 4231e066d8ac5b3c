"""What networks say about the faces of test sets: each once, file by file, in tasks of their own; and their means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpe_core.data.marks import Marks
from hpe_core.data.rows import Shard, read_shard
from hpe_core.geometry.crop import window
from hpe_core.geometry.rotation import YAW, euler_error
from hpe_core.learning.metrics import FRONT_DEG
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import LabelSet
from workflows.engine.cluster.connection import worker_device
from workflows.engine.results import Cell, Role

if TYPE_CHECKING:
    from hpe_core.networks.checkpoint import SavedNet

Angles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one network says about the faces of each test set: plain and offset-ensemble angles, and MAE by (K, d)."""

    ids: dict[str, list[str]]
    groups: dict[str, list[str]]
    truth: dict[str, Angles]
    angles: dict[str, Angles]
    offset_angles: dict[str, Angles]
    rotations: dict[str, Angles]  # mean rotations (M, 3, 3): plain, and over the windows
    offset_rotations: dict[str, Angles]
    kd: dict[str, tuple[Cell, ...]]  # the K/d table (offsets tables 2-4, figure 7)
    marks: dict[str, Marks]  # landmarks, of a network that answers them
    spreads: dict[str, Angles]  # of the plain answers, as the head gives them

    @classmethod
    def of(cls, tests: Mapping[str, Sequence["Seen"]]) -> "Predictions":
        """From what was seen in each file of a test set, in their order: by how many tasks does not matter."""

        def rows(of: Callable[[Seen], Angles]) -> dict[str, Angles]:
            return {test: np.concatenate([of(one) for one in seen]) for test, seen in tests.items()}

        def cells(seen: Sequence[Seen]) -> tuple[Cell, ...]:
            yaws = np.abs(np.concatenate([one.truth for one in seen])[:, YAW])
            ahead = int((yaws <= FRONT_DEG).sum())
            of, faces = (0, ahead) if ahead else (1, len(yaws))
            return tuple(Cell(*pair, sum(one.kd[pair][of] for one in seen) / faces) for pair in sorted(seen[0].kd))

        return cls(
            {test: [name for one in seen for name in one.ids] for test, seen in tests.items()},
            {test: [name for one in seen for name in one.groups] for test, seen in tests.items()},
            rows(lambda one: one.truth),
            rows(lambda one: one.angles),
            rows(lambda one: one.offset_angles),
            rows(lambda one: one.rotations),
            rows(lambda one: one.offset_rotations),
            {test: cells(seen) for test, seen in tests.items()},
            {
                test: Marks.joined([one.marks for one in seen if one.marks])
                for test, seen in tests.items()
                if all(one.marks for one in seen)
            },
            rows(lambda one: one.spreads),
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """What one network says about the faces of one file; `kd` holds each (K, d)'s mean angle errors, summed
    over the faces whose Euler angles are compared, and over all."""

    ids: list[str]
    groups: list[str]
    truth: Angles
    angles: Angles
    offset_angles: Angles
    rotations: Angles
    offset_rotations: Angles
    kd: dict[tuple[int, int], tuple[float, float]]
    spreads: Angles
    marks: Marks | None = None


def parts_of(files: Sequence[str], most: int) -> list[list[str]]:
    """The files in order, in up to `most` parts: a heat map looks at hundreds of windows, so tasks share its files."""
    cuts = np.array_split(np.arange(len(files)), max(1, min(most, len(files))))
    return [[files[i] for i in cut] for cut in cuts]


def predict_files(
    folder: str, files: Sequence[str], offsets: tuple[int, int], radius: int, threads: int = 1
) -> list[Seen]:
    """One network over some test shards: ids, groups, labels, plain and offset-ensemble angles, errors by (K, d)."""
    from hpe_core.learning.precision import exact_float32
    from hpe_core.networks.checkpoint import load_net

    saved = load_net(Path(folder), worker_device(threads))
    with exact_float32():  # the exported file is held to 1e-3 degrees of these angles
        return [predict(saved, read_shard(Path(file)), offsets, radius) for file in files]


def predict(saved: "SavedNet", shard: Shard, offsets: tuple[int, int], radius: int) -> Seen:
    """One network over one test shard."""
    import torch

    from hpe_core.learning.ensemble import ensemble_probs, forward_rows, offset_table, on_device, window_answers

    net, form = saved.net, saved.net.form
    device, size, asked = net.mean_C11.device, saved.crop.size, LabelSet(("",), *offsets, form=form.name)
    plain, shifted, marks = [], [], []
    kd: dict[tuple[int, int], tuple[float, float]] = {}
    for start in range(0, len(shard), forward_rows(device)):
        rows = slice(start, start + forward_rows(device))
        crops = on_device(shard.images[rows], device)
        with torch.inference_mode():
            answered, said = net.answered(window(crops, size))
        plain.append(answered)
        if said is not None:
            marks.append(said.marks_BL3.cpu().numpy())
        if offsets != (0, 1):
            shifted.append(ensemble_probs({"": net}, crops, size, [asked])[asked])
        if radius:
            ahead = np.abs(shard.angles[rows, YAW]) <= FRONT_DEG
            for pair, angles in offset_table(window_answers(net, crops, size, radius), form).items():
                errors, (front, every) = euler_error(angles, shard.angles[rows]).mean(axis=1), kd.get(pair, (0.0, 0.0))
                kd[pair] = front + float(errors[ahead].sum()), every + float(errors.sum())
    answers = torch.cat(plain)
    offset_answers = torch.cat(shifted) if shifted else answers
    spreads = form.spread(answers).cpu().double().numpy()
    angles, offset_angles, rotations, offset_rotations = (
        change(each).cpu().double().numpy()
        for change in (form.decode, form.rotations)
        for each in (answers, offset_answers)
    )
    truth = shard.angles.astype(np.float64)
    landmarks = Marks(np.concatenate(marks), shard.landmarks, shard.scales) if marks else None
    poses = angles, offset_angles, rotations, offset_rotations
    return Seen(shard.sample_ids, shard.groups, truth, *poses, kd, spreads, landmarks)


def with_ensembles(spec: PipelineSpec, found: Mapping[str, Predictions]) -> dict[str, dict[str, Angles]]:
    """Angles by network and test set, with those of the ensembles: means over the teachers, windows, or both
    (EHPNet eq. 4, offsets eq. 6). Teachers that are not all of bins have the chordal mean of their rotations."""
    in_bins = all(teacher.net.form == "bins" for teacher in spec.teachers.values())

    def mean(
        angles: Callable[[Predictions], dict[str, Angles]], rotations: Callable[[Predictions], dict[str, Angles]]
    ) -> dict[str, Angles]:
        part = angles if in_bins else rotations
        means = {
            test: np.mean([part(found[name])[test] for name in spec.teachers], axis=0)
            for test in part(found[spec.base_teacher])
        }
        return means if in_bins else {test: nearest_angles(mean) for test, mean in means.items()}

    return {name: entry.angles for name, entry in found.items()} | {
        Role.TEACHERS: mean(lambda entry: entry.angles, lambda entry: entry.rotations),
        Role.OFFSETS: found[spec.base_teacher].offset_angles,
        Role.COMBINED: mean(lambda entry: entry.offset_angles, lambda entry: entry.offset_rotations),
    }


def nearest_angles(means: Angles) -> Angles:
    """(M, 3, 3) mean rotations -> (M, 3) degrees of their chordal means."""
    import torch

    from hpe_core.geometry.rotations import Rotations

    return np.asarray(Rotations().decode(torch.from_numpy(means)).numpy(), np.float64)
