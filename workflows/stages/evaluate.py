"""Stage "evaluate": every network and both ensembles on every test set, in the form of the papers' tables.

    python workflows/evaluate.py -c conf/demo.yaml               run it, where the student is trained
    python workflows/evaluate.py -c conf/demo.yaml --json        rows and heat map as one JSON object

The only stage that opens test shards. Each network predicts all test faces once, in its own Ray task; the teachers'
ensemble, the offset ensemble and their combination are means of their members' angles, since the decoded angle is
linear in the probabilities (offsets eq. 6, EHPNet eq. 4). Latency is measured after that, one network at a time, on
an idle machine.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpe_core.data.rows import read_table, shard_files
from hpe_core.datasets.base import Source
from hpe_core.datasets.files import archive_root
from hpe_core.datasets.registry import boxes_of, open_source, reader_of
from hpe_core.geometry.rotation import YAW
from hpe_core.spec.data import DataSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.spec.training import AugmentSpec, LabelSet, TrainSpec
from hpe_core.system.files import file_sha256
from hpe_core.system.memory import keep_freed_memory
from workflows.engine.store import StageRun

Angles = NDArray[np.float64]
BATCH = 64
DRIFT_FACES = 128


def run(stage: StageRun) -> dict[str, Any]:
    """Score everything; returns the table, and writes predictions.parquet beside the manifest."""
    import ray

    spec, evaluate = stage.spec, stage.spec.evaluate
    networks = {name: stage.inputs["teachers"] / name for name in spec.teachers}
    networks |= {"hard": stage.inputs["student"] / "hard", "distilled": stage.inputs["student"] / "distilled"}
    tests = {name: [str(f) for f in shard_files(stage.inputs["shards"], name, "test")] for name in spec.data.test}
    offsets = (evaluate.offset_radius, evaluate.offset_step)
    predict = ray.remote(num_cpus=spec.cluster.cpus_per_worker, num_gpus=spec.cluster.gpus_per_worker)(predict_all)
    pending = {
        name: predict.remote(
            str(folder),
            tests,
            offsets if name in spec.teachers else (0, 1),
            evaluate.heatmap_radius if name == spec.base_teacher else 0,
        )
        for name, folder in networks.items()
    }
    found = {}
    for done, (name, future) in enumerate(pending.items(), start=1):
        found[name] = ray.get(future)
        stage.reporter.progress("networks scored", done, len(networks), "networks")
    truth = found["distilled"]["truth"]
    predictions = {name: entry["angles"] for name, entry in found.items()}
    predictions["teachers' ensemble"] = {
        test: np.mean([found[name]["angles"][test] for name in spec.teachers], axis=0) for test in tests
    }
    predictions["offset ensemble"] = found[spec.base_teacher]["offset_angles"]
    predictions["combined ensemble"] = {
        test: np.mean([found[name]["offset_angles"][test] for name in spec.teachers], axis=0) for test in tests
    }
    ids, groups = found["distilled"]["ids"], found["distilled"]["groups"]
    write_predictions(stage.folder / "predictions.parquet", ids, truth, predictions)
    costs = {
        name: ray.get(ray.remote(num_cpus=1)(cost).remote(str(folder), evaluate.latency_threads))
        for name, folder in networks.items()
    }
    sources = {name: open_source(spec.data.datasets[name]) for name in tests}
    recordings = {test: np.array([*map(source.reader.recording_of, ids[test])]) for test, source in sources.items()}
    new = new_people(spec.data, stage.inputs["shards"], groups)
    return {
        "protocol": under_protocol(spec),
        "boxes": {test: drawn_by(source) for test, source in sources.items()},
        "drift": ray.get(drift_task(stage)),
        "rows": table(spec, truth, predictions, costs, recordings),
        "new_people": table(
            spec,
            {test: truth[test][rows] for test, rows in new.items()},
            {name: {test: angles[test][rows] for test, rows in new.items()} for name, angles in predictions.items()},
            costs,
            {test: recordings[test][rows] for test, rows in new.items()},
        ),
        "heatmap": {test: heatmap(found[spec.base_teacher], test) for test in tests} if evaluate.heatmap_radius else {},
    }


def new_people(data: DataSpec, shards: Path, groups: dict[str, list[str]]) -> dict[str, NDArray[np.bool_]]:
    """For each test set that shows people who were trained on: which of its faces show nobody of them.

    Only where a reader's groups are finer than people, as BIWI's sequences are: three of the eight that protocol 3
    tests on show people of its training set. A test set without such people, or without others, is left out.
    """
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


def drift_task(stage: StageRun) -> Any:
    """Validation faces, flipped and turned as the student's augmentation does: are moved soft labels still right?

    Of the student's teachers, over one window: the motion is in question, not the offsets.
    """
    import ray

    spec, student = stage.spec, build(TrainSpec, stage.results["student"]["spec"])
    folders = {name: str(stage.inputs["teachers"] / name) for name in spec.label_set(student).teachers}
    files = [str(file) for name in spec.data.train for file in shard_files(stage.inputs["shards"], name, "val")]
    task = ray.remote(num_cpus=spec.cluster.cpus_per_worker, num_gpus=spec.cluster.gpus_per_worker)(drift)
    return task.remote(folders, files, to_dict(student.augment))


def drift(folders: dict[str, str], files: list[str], plain: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By motion and yaw: how far moved labels lie from the teachers on the moved view (`hpe_core.learning.drift`)."""
    import torch

    from hpe_core.data.batch import FaceData
    from hpe_core.learning.checkpoint import load_net
    from hpe_core.learning.drift import label_drift

    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    augment, labels = build(AugmentSpec, plain), LabelSet(tuple(folders), 0, 1)
    saved = {name: load_net(Path(folder), device) for name, folder in folders.items()}
    nets, size = {name: entry.net for name, entry in saved.items()}, next(iter(saved.values())).crop.size
    faces = next(iter(FaceData([Path(files[0])]).ordered(DRIFT_FACES))).to(device)  # one shard is sample enough
    yaw = faces.angles_B3[:, YAW].abs()
    parts = {"yaw below 60": faces.take(yaw < 60), "yaw beyond 60": faces.take(yaw >= 60)}
    motions: dict[str, tuple[float, float]] = {"flip": (1.0, 0.0)} if augment.flip else {}
    motions |= {"turn": (0.0, augment.turn_deg)} if augment.turn_deg else {}
    return {
        f"{kind}, {name}": {
            **label_drift(nets, labels, part, size, flip=flip, turn_deg=turn, turn_gain=augment.turn_gain),
            "faces": len(part),
        }
        for kind, (flip, turn) in motions.items()
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


def under_protocol(spec: PipelineSpec) -> dict[str, Any]:
    """Name and hash of the protocol that was asked for, and in what this run deviates from it."""
    from hpe_core.datasets.protocols import matches, protocol_named

    if not spec.evaluate.protocol:
        return {}
    protocol = protocol_named(spec.evaluate.protocol)
    return {"name": protocol.name, "hash": protocol.hash, "deviations": matches(protocol, spec.data)}


def predict_all(folder: str, tests: dict[str, list[str]], offsets: tuple[int, int], radius: int) -> dict[str, Any]:
    """One network over all test sets: ids, groups, labels, plain and offset-ensemble angles, and errors by (K, d)."""
    import torch

    from hpe_core.data.rows import read_shard
    from hpe_core.geometry.crop import window
    from hpe_core.learning.checkpoint import load_net
    from hpe_core.learning.ensemble import ensemble_probs, offset_table, window_angles
    from hpe_core.learning.metrics import PoseSums

    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    saved = load_net(Path(folder), device)
    size, bins, asked = saved.crop.size, saved.net.main_bins, LabelSet(("",), *offsets)
    out: dict[str, Any] = {"ids": {}, "groups": {}, "truth": {}, "angles": {}, "offset_angles": {}, "kd": {}}
    for test, files in tests.items():
        ids: list[str] = []
        groups: list[str] = []
        truth, plain, shifted = [], [], []
        kd: dict[tuple[int, int], PoseSums] = {}
        for file in files:
            shard = read_shard(Path(file))
            ids += shard.sample_ids
            groups += shard.groups
            truth.append(shard.angles.astype(np.float64))
            for start in range(0, len(shard), BATCH):
                rows = slice(start, start + BATCH)
                crops = torch.from_numpy(shard.images[rows].copy()).to(device)
                with torch.inference_mode():
                    plain.append(saved.net.angles(window(crops, size)).cpu().double().numpy())
                if offsets != (0, 1):
                    probs = ensemble_probs({"": saved.net}, crops, size, [asked])[asked]
                    shifted.append(bins.decode(probs).cpu().double().numpy())
                if radius:
                    for pair, angles in offset_table(window_angles(saved.net, crops, size, radius)).items():
                        kd[pair] = kd.get(pair, PoseSums.empty()) + PoseSums.of(angles, shard.angles[rows])
        out["ids"][test], out["groups"][test], out["truth"][test] = ids, groups, np.concatenate(truth)
        out["angles"][test] = np.concatenate(plain)
        out["offset_angles"][test] = np.concatenate(shifted) if shifted else out["angles"][test]
        out["kd"][test] = {pair: sums.summary()["mae"] for pair, sums in kd.items()}
    return out


def heatmap(found: dict[str, Any], test: str) -> list[dict[str, float]]:
    """The K/d table of the base network (offsets tables 2-4, figure 7)."""
    return [{"K": k, "d": d, "mae": mae} for (k, d), mae in sorted(found["kd"][test].items())]


def cost(folder: str, threads: int) -> dict[str, float]:
    from hpe_core.learning.checkpoint import load_net
    from hpe_core.learning.latency import cpu_cost

    return cpu_cost(load_net(Path(folder)).net, threads)


def table(
    spec: PipelineSpec,
    truth: dict[str, Angles],
    predictions: dict[str, dict[str, Angles]],
    costs: dict[str, dict[str, float]],
    recordings: dict[str, NDArray[np.str_]],
) -> list[dict[str, Any]]:
    """One row a network or ensemble and test set; an ensemble costs what its members cost together.

    `recordings` says of each face in which recording it was labelled: each gets an alignment of its own.
    """
    from hpe_core.geometry.crop import offset_grid
    from hpe_core.learning.metrics import PoseSums, aligned_summary

    windows = len(offset_grid(spec.evaluate.offset_radius, spec.evaluate.offset_step))
    base = spec.base_teacher
    roles = {base: "base (hard labels)"}
    roles |= {name: "teacher (hard labels)" for name in spec.teachers if name != base}
    roles |= {"teachers' ensemble": f"mean of {len(spec.teachers)} teachers"}
    pair = f"K={spec.evaluate.offset_radius}, d={spec.evaluate.offset_step}"
    roles |= {"offset ensemble": f"base over {windows} windows ({pair})"}
    roles |= {"combined ensemble": f"mean of {len(spec.teachers)} teachers over {windows} windows ({pair})"}
    roles |= {"hard": "student on hard labels, same budget", "distilled": "student, distilled"}
    costs = dict(costs)
    costs["teachers' ensemble"] = {
        key: sum(costs[name][key] for name in spec.teachers) for key in ("parameters", "latency_ms")
    }
    costs["offset ensemble"] = {
        "parameters": costs[base]["parameters"],
        "latency_ms": windows * costs[base]["latency_ms"],
    }
    costs["combined ensemble"] = {
        "parameters": costs["teachers' ensemble"]["parameters"],
        "latency_ms": windows * costs["teachers' ensemble"]["latency_ms"],
    }
    rows = []
    for test, labels in truth.items():
        for name, role in roles.items():
            scores = PoseSums.of(predictions[name][test], labels).summary()
            scores |= aligned_summary(predictions[name][test], labels, recordings[test])
            rows.append({"test": test, "name": name, "role": role, **scores, **costs[name]})
    return rows


def write_predictions(
    path: Path, ids: dict[str, list[str]], truth: dict[str, Angles], predictions: dict[str, dict[str, Angles]]
) -> None:
    """Every prediction beside its label: test, sample_id, network, three angles and three true ones."""
    import pyarrow as pa

    from hpe_core.data.rows import write_table
    from hpe_core.geometry.rotation import ANGLE_NAMES

    columns: dict[str, list[Any]] = {"test": [], "sample_id": [], "network": []}
    numbers: list[Angles] = []
    for name, by_test in predictions.items():
        for test, angles in by_test.items():
            columns["test"] += [test] * len(angles)
            columns["sample_id"] += ids[test]
            columns["network"] += [name] * len(angles)
            numbers.append(np.concatenate([angles, truth[test]], axis=1))
    together = np.concatenate(numbers).astype(np.float32)
    names = [*ANGLE_NAMES, *(f"true_{name}" for name in ANGLE_NAMES)]
    arrays = {**columns, **{name: together[:, i] for i, name in enumerate(names)}}
    write_table(path, pa.table(arrays))


def print_tables(result: dict[str, Any]) -> str:
    """All tables of this stage's result: every test set whole, then the faces of new people where some are not."""
    return print_table(result["rows"]) + print_table(result["new_people"], " of people who were not trained on")


def print_table(rows: Sequence[dict[str, Any]], whose: str = "") -> str:
    """The table that ends a run, one block a test set."""
    lines = []
    for test in dict.fromkeys(row["test"] for row in rows):
        block = [row for row in rows if row["test"] == test]
        lines += [
            "",
            f"test set {test}, {block[0]['n']:.0f} faces{whose}",
            f"{'network':<22}{'pitch':>7}{'yaw':>7}{'roll':>7}{'MAE':>7}{'geod.':>7}{'params':>9}{'CPU ms':>8}  what",
        ]
        for row in block:
            numbers = "".join(f"{row[key]:7.2f}" for key in ("pitch", "yaw", "roll", "mae", "geodesic"))
            lines.append(
                f"{row['name']:<22}{numbers}{row['parameters'] / 1e6:8.2f}M{row['latency_ms']:8.1f}  {row['role']}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    from workflows.full_pipeline import stage_command

    sys.exit(stage_command(["evaluate"], __doc__ or "", sys.argv[1:]))
