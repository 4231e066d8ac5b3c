"""Stage "evaluate": every network and both ensembles on every test set, in the form of the papers' tables.

The only stage that opens test shards. Each network predicts all test faces once, in its own Ray task; the teachers'
ensemble, the offset ensemble and their combination are means of their members' angles, since the decoded angle is
linear in the probabilities (offsets eq. 6, EHPNet eq. 4), or of their mean rotations where a teacher has no bins.
Latency is measured after that, one network at a time, on an idle machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpe_core.data.marks import MARKS_FILE, write_marks
from hpe_core.data.rows import read_table, shard_files, write_table
from hpe_core.data.shares import read_pieces, whole_shards
from hpe_core.datasets.base import Source
from hpe_core.datasets.files import archive_root
from hpe_core.datasets.protocols import matches, protocol_named
from hpe_core.datasets.registry import boxes_of, open_source, reader_of
from hpe_core.geometry.crop import offset_grid
from hpe_core.geometry.rotation import ANGLE_NAMES, YAW
from hpe_core.learning.metrics import PoseSums, aligned_summary
from hpe_core.spec.data import DataSpec
from hpe_core.spec.network import FormName
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import AugmentSpec, LabelSet
from hpe_core.system.files import file_sha256
from workflows.engine.cluster.connection import capacity, worker_device
from workflows.engine.cluster.placement import Placement, placed
from workflows.engine.results import EvaluateResult, Role, Row, UnderProtocol
from workflows.engine.stage import StageRun
from workflows.scoring.seen import Angles, Predictions, parts_of, predict_files, with_ensembles
from workflows.scoring.sureness import sureness

DRIFT_FACES = 128


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """What is evaluated, and on which test sets."""
    chosen = to_dict(spec.evaluate) | {"base": spec.base_teacher}  # unnamed, it is the first teacher
    return {"evaluate": chosen, "test": list(spec.data.test)}


def run(stage: StageRun) -> EvaluateResult:
    """Score everything; returns the table, and writes predictions.parquet beside the manifest."""
    import ray

    spec, evaluate = stage.spec, stage.spec.evaluate
    networks = networks_of(spec, stage.inputs)
    tests = {name: [str(f) for f in shard_files(stage.inputs["shards"], name, "test")] for name in spec.data.test}
    at = placed(spec, stage.name, capacity(spec.cluster))
    predict = ray.remote(**at.options)(predict_files)
    files = [file for own in tests.values() for file in own]
    pending = {
        name: [
            predict.remote(str(folder), part, *asked_of(spec, name), at.threads)
            for part in parts_of(files, at.at_once if asked_of(spec, name)[1] else 1)
        ]
        for name, folder in networks.items()
    }
    validating = predict.remote(str(networks[Role.DISTILLED]), validation(stage), (0, 1), 0, at.threads)
    found: dict[str, Predictions] = {}
    for done, (name, futures) in enumerate(pending.items(), start=1):
        seen = dict(zip(files, [one for part in ray.get(futures) for one in part], strict=True))
        found[name] = Predictions.of({test: [seen[file] for file in own] for test, own in tests.items()})
        stage.reporter.progress("networks scored", done, len(networks), "networks")
    faces = found[Role.DISTILLED]
    predictions = with_ensembles(spec, found)
    sources = {name: open_source(spec.data.datasets[name]) for name in tests}
    people = {test: [*map(source.reader.person_of, faces.groups[test])] for test, source in sources.items()}
    write_predictions(stage.folder / "predictions.parquet", faces.ids, people, faces.truth, predictions)
    said = {(str(n), t): (one.ids[t], marks) for n, one in found.items() for t, marks in one.marks.items()}
    write_marks(stage.folder / MARKS_FILE, said)
    costs = {name: ray.get(ray.remote(num_cpus=1)(cost).remote(str(folder))) for name, folder in networks.items()}
    recordings = {t: np.array([*map(source.reader.recording_of, faces.ids[t])]) for t, source in sources.items()}
    new = new_people(spec.data, stage.inputs["shards"], faces.groups)
    return EvaluateResult(
        protocol=under_protocol(spec),
        boxes={test: drawn_by(source) for test, source in sources.items()},
        drift=ray.get(drift_task(stage, at)),
        rows=table(spec, faces.truth, predictions, found, costs, recordings),
        new_people=table(spec, faces.truth, predictions, found, costs, recordings, new),
        heatmap=found[spec.base_teacher].kd if evaluate.heatmap_radius else {},
        sureness=sureness(Predictions.of({"val": ray.get(validating)}), faces),
    )


def networks_of(spec: PipelineSpec, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Folders of the networks that are scored, by their names in the tables."""
    teachers = {name: inputs["teachers"] / name for name in spec.teachers}
    return teachers | {name: inputs["student"] / name for name in (Role.HARD, Role.DISTILLED)}


def validation(stage: StageRun) -> list[str]:
    """The shards of the faces by which networks were chosen, in whatever order the datasets are named."""
    names = sorted(stage.spec.data.train)
    return [str(file) for name in names for file in shard_files(stage.inputs["shards"], name, "val")]


def asked_of(spec: PipelineSpec, name: str) -> tuple[tuple[int, int], int]:
    """(K, d) of the offset ensemble, of teachers, and the radius of the heat map, of the base teacher."""
    offsets = (spec.evaluate.offset_radius, spec.evaluate.offset_step) if name in spec.teachers else (0, 1)
    return offsets, spec.evaluate.heatmap_radius if name == spec.base_teacher else 0


def new_people(data: DataSpec, shards: Path, groups: dict[str, list[str]]) -> dict[str, NDArray[np.bool_]]:
    """{test: which of its faces show nobody who was trained on}, where groups are finer than people, as in BIWI."""
    found = {}
    for test, names in groups.items():
        reader = reader_of(data.datasets[test])
        if not reader.has_sequences:
            continue  # groups are people there, and two archives may spell theirs alike
        seen = {
            reader.person_of(group)
            for name in data.train
            if data.datasets[name].reader == data.datasets[test].reader
            for split in ("train", "val")
            for file in shard_files(shards, name, split)
            for group in read_table(file, ["group"])["group"].to_pylist()
        }
        rows = np.array([reader.person_of(group) not in seen for group in names])
        if 0 < rows.sum() < len(rows):
            found[test] = rows
    return found


def drift_task(stage: StageRun, at: Placement) -> Any:
    """Are soft labels still right on validation faces, flipped and turned as the student's are? One window."""
    import ray

    spec, student = stage.spec, stage.results.student.spec
    folders = {name: str(stage.inputs["teachers"] / name) for name in spec.label_set(student).teachers}
    assert student.distill is not None
    asked = (to_dict(student.augment), student.distill.mirrored, student.net.form)
    return ray.remote(**at.options)(drift).remote(folders, validation(stage), *asked)


def drift(
    folders: dict[str, str], files: list[str], plain: dict[str, Any], mirrored: bool, form: FormName
) -> dict[str, dict[str, float]]:
    """By motion and yaw: how far moved labels lie from the teachers on the moved view (`hpe_core.learning.drift`)."""
    from hpe_core.data.batch import taken
    from hpe_core.learning.drift import label_drift
    from hpe_core.learning.precision import exact_float32
    from hpe_core.networks.checkpoint import load_net

    device = worker_device()
    augment, labels = build(AugmentSpec, plain), LabelSet(tuple(folders), 0, 1, mirrored, form)
    saved = {name: load_net(Path(folder), device) for name, folder in folders.items()}
    nets, size = {name: entry.net for name, entry in saved.items()}, next(iter(saved.values())).crop.size
    (shard,) = whole_shards([Path(files[0])])  # one is sample enough
    rows = min(DRIFT_FACES, shard.rows)
    faces = taken(read_pieces([shard._replace(stop=rows)]), np.arange(rows)).to(device)
    yaw = faces.angles_B3[:, YAW].abs()
    parts = {"yaw below 60": faces.take(yaw < 60), "yaw beyond 60": faces.take(yaw >= 60)}
    turn = {"turn_deg": augment.turn_deg, "turn_gain": augment.turn_gain}
    motions = {"flip": {"flip": 1.0}} if augment.flip else {}
    motions |= {"turn": turn} if augment.turn_deg else {}
    motions |= {"zoom": {"zoom": augment.zoom}} if augment.zoom else {}
    with exact_float32():
        return {
            f"{kind}, {name}": {**label_drift(nets, labels, part, size, **motion), "faces": len(part)}
            for kind, motion in motions.items()
            for name, part in parts.items()
            if len(part)
        }


def drawn_by(source: Source) -> str:
    """Who drew a test set's boxes: errors of pose are comparable on one's boxes only."""
    dataset = source.spec
    if dataset.boxes:
        source.fetch([])  # a remote file of boxes
        return f"file {Path(dataset.boxes).name} {file_sha256(archive_root(dataset.boxes))[:12]}"
    return boxes_of(dataset) or dataset.reader


def under_protocol(spec: PipelineSpec) -> UnderProtocol | None:
    """The protocol that was asked for, and in what this run deviates from it."""
    if not spec.evaluate.protocol:
        return None
    protocol = protocol_named(spec.evaluate.protocol)
    return UnderProtocol(protocol.name, protocol.hash, tuple(matches(protocol, spec.data)))


def cost(folder: str) -> dict[str, float]:
    from hpe_core.networks.checkpoint import load_net
    from hpe_core.training.latency import cpu_cost

    return cpu_cost(load_net(Path(folder)).net)


def table(
    spec: PipelineSpec,
    truth: Mapping[str, Angles],
    predictions: Mapping[str, Mapping[str, Angles]],
    found: Mapping[str, Predictions],
    costs: Mapping[str, Mapping[str, float]],
    recordings: Mapping[str, NDArray[np.str_]],
    only: Mapping[str, NDArray[np.bool_]] | None = None,
) -> tuple[Row, ...]:
    """One row a network or ensemble and test set, over all faces or `only` some; each recording has an alignment."""
    windows = len(offset_grid(spec.evaluate.offset_radius, spec.evaluate.offset_step))
    base, members = spec.base_teacher, list(spec.teachers)
    pair = f"K={spec.evaluate.offset_radius}, d={spec.evaluate.offset_step}"
    listed: list[tuple[str, Role, str, Sequence[str], int]] = [(base, Role.BASE, "base (hard labels)", [base], 1)]
    listed += [(name, Role.TEACHER, "teacher (hard labels)", [name], 1) for name in members if name != base]
    for role, what, parts, times in (
        (Role.TEACHERS, f"mean of {len(members)} teachers", members, 1),
        (Role.OFFSETS, f"base over {windows} windows ({pair})", [base], windows),
        (Role.COMBINED, f"mean of {len(members)} teachers over {windows} windows ({pair})", members, windows),
        (Role.HARD, "student on hard labels, same budget", [Role.HARD], 1),
        (Role.DISTILLED, "student, distilled", [Role.DISTILLED], 1),
    ):
        listed.append((role, role, what, parts, times))
    rows = []
    for test, picked in (dict.fromkeys(truth, slice(None)) if only is None else only).items():
        labels, recorded = truth[test][picked], recordings[test][picked]
        for name, role, what, asked, times in listed:
            angles = predictions[name][test][picked]
            scores = PoseSums.of(angles, labels).summary() | aligned_summary(angles, labels, recorded)
            if name in found and test in found[name].marks:
                scores |= found[name].marks[test].scores(picked)
            size, latency = (sum(costs[part][key] for part in asked) for key in ("parameters", "latency_ms"))
            rows.append(Row(test, name, role, what, scores, size, times * latency))
    return tuple(rows)


def write_predictions(
    path: Path,
    ids: dict[str, list[str]],
    people: dict[str, list[str]],
    truth: dict[str, Angles],
    predictions: dict[str, dict[str, Angles]],
) -> None:
    """Every prediction beside its label: test, sample_id, person, network, three angles and three true ones."""
    columns: dict[str, list[Any]] = {"test": [], "sample_id": [], "person": [], "network": []}
    numbers: list[Angles] = []
    for name, by_test in predictions.items():
        for test, angles in by_test.items():
            columns["test"] += [test] * len(angles)
            columns["sample_id"] += ids[test]
            columns["person"] += people[test]
            columns["network"] += [str(name)] * len(angles)
            numbers.append(np.concatenate([angles, truth[test]], axis=1))
    together = np.concatenate(numbers).astype(np.float32)
    names = [*ANGLE_NAMES, *(f"true_{name}" for name in ANGLE_NAMES)]
    arrays = {**columns, **{name: together[:, i] for i, name in enumerate(names)}}
    write_table(path, pa.table(arrays))
