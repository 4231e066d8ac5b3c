"""The figures of the tables: whose angles stand in a row, what an ensemble is the mean of, and what it costs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hpe_core.data.rows import read_shard, read_table, write_shard
from hpe_core.datasets.base import FaceRow
from hpe_core.geometry.crop import Box, FaceCrop, offset_grid, window
from hpe_core.geometry.landmarks import landmark_errors
from hpe_core.geometry.rotation import euler_error, euler_to_matrix, geodesic_deg
from hpe_core.learning import ensemble
from hpe_core.learning.calibration import LEVELS
from hpe_core.learning.metrics import PoseSums, aligned_summary
from hpe_core.networks.checkpoint import save_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec, student_with
from hpe_core.spec.serde import build, to_dict
from tests.faces import CROP, write_heads
from workflows.engine.cluster.placement import placed
from workflows.engine.results import NetworkResult, Results, Role, StudentResult
from workflows.report.text import print_table
from workflows.scoring import seen as scoring
from workflows.scoring.seen import Predictions, parts_of, predict_files, with_ensembles
from workflows.scoring.sureness import sureness
from workflows.stages import evaluate

TESTS = {"heads": 5, "others": 8}
TEACHERS = ("first", "second", "third")
ENSEMBLES = (Role.TEACHERS, Role.OFFSETS, Role.COMBINED)
Angles = dict[str, np.ndarray]


def pipeline(base: str = "", heatmap_radius: int = 3) -> PipelineSpec:
    heads = {name: {"reader": "synthetic", "count": 9, "seed": i} for i, name in enumerate(("drawn", *TESTS))}
    data = {"datasets": heads, "train": ["drawn"], "test": list(TESTS), "crop": {"size": 32, "margin_px": 6}}
    scored = {"base": base, "offset_radius": 4, "offset_step": 2, "heatmap_radius": heatmap_radius}
    tree = {"name": "law", "data": data, "teachers": {name: {} for name in TEACHERS}, "evaluate": scored}
    return build(PipelineSpec, tree | {"student": {"distill": {}}})


def found() -> dict[str, Predictions]:
    """What networks may have predicted: no two say the same, and no plain angle is that of the offsets."""
    random = np.random.default_rng(0)

    def drawn() -> Angles:
        return {test: random.uniform(-60, 60, (count, 3)) for test, count in TESTS.items()}

    return {
        name: Predictions({}, {}, drawn(), drawn(), drawn(), {}, {}, {}, {}, {})
        for name in (*TEACHERS, Role.HARD, Role.DISTILLED)
    }


@pytest.mark.parametrize("base", ["", "second"])
def test_an_ensemble_is_the_mean_of_the_angles_that_it_is_named_after(base):
    spec, each = pipeline(base), found()
    whole = with_ensembles(spec, each)
    assert set(whole) == {*each, *ENSEMBLES}
    for test in TESTS:
        for name, entry in each.items():
            np.testing.assert_array_equal(whole[name][test], entry.angles[test])
        np.testing.assert_allclose(whole[Role.TEACHERS][test], sum(each[name].angles[test] for name in TEACHERS) / 3)
        np.testing.assert_array_equal(whole[Role.OFFSETS][test], each[base or "first"].offset_angles[test])
        shifted = sum(each[name].offset_angles[test] for name in TEACHERS) / 3
        np.testing.assert_allclose(whole[Role.COMBINED][test], shifted)


def test_an_ensemble_with_rotations_is_the_chordal_mean():
    """One teacher that says no bins is enough; angles of theirs cannot be averaged near 180 degrees."""
    spec, cloud = pipeline(), Rotation.random(8, random_state=0).as_matrix()[None]
    cloud = cloud @ Rotation.from_rotvec([[0, 0, 0], [0.4, 0, 0.3], [0, -0.5, 0.2]]).as_matrix()[:, None]
    student = replace(spec.student, net=NetSpec(head="fisher"), hard_loss="fisher")
    teachers = spec.teachers | {"third": replace(student, distill=None)}
    spec, each = replace(spec, teachers=teachers, student=student), found()
    for name, rotations in zip(TEACHERS, cloud, strict=True):
        moved = {test: rotations for test in TESTS}
        each[name] = replace(each[name], rotations=moved, offset_rotations={t: r[::-1] for t, r in moved.items()})
    whole = with_ensembles(spec, each)
    expected = np.stack([Rotation.from_matrix(face).mean().as_matrix() for face in cloud.swapaxes(0, 1)])
    for test in TESTS:
        assert geodesic_deg(euler_to_matrix(whole[Role.TEACHERS][test]), expected).max() < 1e-3
        assert geodesic_deg(euler_to_matrix(whole[Role.COMBINED][test]), expected[::-1]).max() < 1e-3


@pytest.mark.parametrize("base", ["", "second"])
def test_every_network_has_its_own_folder_and_teachers_alone_look_around(base):
    spec = pipeline(base)
    folders = evaluate.networks_of(spec, {"teachers": Path("/t"), "student": Path("/s"), "shards": Path("/x")})
    assert folders == {name: Path("/t", name) for name in TEACHERS} | {n: Path("/s", n) for n in ("hard", "distilled")}
    assert [name for name in folders if evaluate.asked_of(spec, name)[0] == (4, 2)] == list(TEACHERS)
    assert [name for name in folders if evaluate.asked_of(spec, name)[1] == 3] == [base or "first"]


@pytest.mark.parametrize("base", ["", "second"])
def test_a_row_has_the_errors_of_its_own_network_and_the_cost_of_all_its_members(base):
    spec, each = pipeline(base), found()
    whole, truth = with_ensembles(spec, each), each[Role.HARD].truth
    costs = {name: {"parameters": 10.0**i, "latency_ms": 3.0**i} for i, name in enumerate(each)}
    recordings = {test: np.array(["a", "b"] * count)[:count] for test, count in TESTS.items()}
    rows = evaluate.table(spec, truth, whole, each, costs, recordings)
    assert len(rows) == len(TESTS) * len(whole)
    first, *others = base or "first", *(name for name in TEACHERS if name != (base or "first"))
    for test in TESTS:
        mine = {row.name: row for row in rows if row.test == test}
        assert list(mine) == [first, *others, *ENSEMBLES, "hard", "distilled"]
        roles = [Role.BASE, *[Role.TEACHER for _ in others], *ENSEMBLES, Role.HARD, Role.DISTILLED]
        assert [row.role for row in mine.values()] == roles
        for name, row in mine.items():
            angles = whole[name][test]
            scores = PoseSums.of(angles, truth[test]).summary() | aligned_summary(angles, truth[test], recordings[test])
            assert row.scores == scores and row.mae == scores["mae"], name
            assert scores.items() | {("test", test), ("name", name)} <= row.as_json().items()
        cost = {name: (row.parameters, row.latency_ms) for name, row in mine.items()}
        assert {name: cost[name] for name in each} == {name: tuple(entry.values()) for name, entry in costs.items()}
        windows = len(offset_grid(4, 2))
        assert windows == 25 and cost[Role.TEACHERS] == (111, 13)
        assert cost[Role.OFFSETS] == (costs[first]["parameters"], windows * costs[first]["latency_ms"])
        assert cost[Role.COMBINED] == (111, windows * 13)
        assert "hard labels" in mine["hard"].what and "distilled" in mine["distilled"].what
        assert mine[first].what.startswith("base") and all(mine[o].what.startswith("teacher") for o in others)
    printed = print_table(rows).splitlines()
    for row in rows:
        (line,) = [text for text in printed if text.startswith(f"{row.name} ") and f"{row.mae:7.2f}" in text]
        numbers = [f"{row.scores[key]:.2f}" for key in ("pitch", "yaw", "roll", "mae", "geodesic")]
        assert line.split(row.name)[1].split()[:5] == numbers


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PoseNet, dict[str, list[str]]]:
    """A network whose angles differ from window to window, and test sets of two shards, read in batches of three."""
    folder = tmp_path_factory.mktemp("asked")
    torch.manual_seed(0)
    net = PoseNet(NetSpec("test_resnet"), CROP.size).eval()
    torch.nn.init.normal_(next(net.heads[0].parameters()), std=0.5)
    save_net(folder / "net", net, CROP, {})
    files = {}
    for first, (test, count) in enumerate(TESTS.items()):
        files[test] = [str(f) for f in write_heads(folder / test, count, split="test", first=20 * first, per_shard=4)]
    return folder / "net", net, files


def test_the_map_of_offsets_counts_the_faces_of_the_table(asked, tmp_path):
    """Euler angles of heads from behind say nothing; where all are such, all count, as in the table."""
    folder, _, files = asked
    shard = read_shard(Path(files[min(TESTS)][0]))
    for behind in (1, len(shard)):
        truth = shard.angles.copy()
        truth[:behind, 1] = 150
        rows = [
            FaceRow(*row, FaceCrop(image, 1.0, 1.0, Box(0, 0, 9, 9)))
            for row, image in zip(
                ((f"{i}", "", "", tuple(map(float, pose))) for i, pose in enumerate(truth)), shard.images, strict=True
            )
        ]
        write_shard(tmp_path / "turned.parquet", rows, CROP, "raw")
        found = predictions(folder, {"turned": [str(tmp_path / "turned.parquet")]}, (0, 1), 1)
        middle = {(cell.K, cell.d): cell.mae for cell in found.kd["turned"]}[0, 1]
        assert middle == pytest.approx(PoseSums.of(found.angles["turned"], truth).summary()["mae"], abs=1e-3)


def predictions(
    folder: Path, files: dict[str, list[str]], offsets: tuple[int, int], radius: int, parts: int = 1
) -> Predictions:
    """As the stage puts them together from so many tasks."""
    every = [file for own in files.values() for file in own]
    tasks = parts_of(every, parts)
    assert [file for part in tasks for file in part] == every and len(tasks) == min(parts, len(every))
    found = [one for part in tasks for one in predict_files(str(folder), part, offsets, radius)]
    seen = dict(zip(every, found, strict=True))
    return Predictions.of({test: [seen[file] for file in own] for test, own in files.items()})


def test_it_does_not_matter_how_many_tasks_share_the_files(asked):
    folder, _, files = asked
    alone, shared = (predictions(folder, files, (4, 2), 2, parts) for parts in (1, 3))
    for test in TESTS:
        assert alone.kd[test] == shared.kd[test] and alone.ids[test] == shared.ids[test]
        np.testing.assert_array_equal(alone.offset_angles[test], shared.offset_angles[test])
    assert [len(part) for part in parts_of(list("abcde"), 9)] == [1] * 5


def test_angles_are_those_of_the_middle_and_offset_angles_their_mean_over_the_windows(asked, monkeypatch):
    folder, net, files = asked
    monkeypatch.setattr(ensemble, "CPU_ROWS", 3)
    result, alone = predictions(folder, files, (4, 2), 2), predictions(folder, files, (0, 1), 0)
    for test, count in TESTS.items():
        shards = [read_shard(Path(file)) for file in files[test]]
        crops = torch.from_numpy(np.concatenate([shard.images for shard in shards]))
        truth = np.concatenate([shard.angles for shard in shards])
        with torch.inference_mode():
            seen = {at: net.angles(window(crops, CROP.size, *at)).double().numpy() for at in offset_grid(4, 1)}
        np.testing.assert_allclose(result.angles[test], seen[0, 0], atol=1e-3)
        mean = np.mean([seen[at] for at in offset_grid(4, 2)], axis=0)
        np.testing.assert_allclose(result.offset_angles[test], mean, atol=1e-3)
        assert np.abs(result.offset_angles[test] - result.angles[test]).max() > 0.1
        assert result.ids[test] == [name for shard in shards for name in shard.sample_ids]
        assert result.groups[test] == [name for shard in shards for name in shard.groups]
        np.testing.assert_array_equal(result.truth[test], truth)
        cells = {(cell.K, cell.d): cell.mae for cell in result.kd[test]}
        assert set(cells) == {(k, d) for k in range(3) for d in (1, 2)} and len(truth) == count
        for pair, mae in cells.items():
            mean = np.mean([seen[at] for at in offset_grid(*pair)], axis=0)
            assert mae == pytest.approx(PoseSums.of(mean, truth).summary()["mae"], abs=1e-3)
        np.testing.assert_array_equal(alone.offset_angles[test], alone.angles[test])
        assert alone.kd[test] == ()


def test_landmarks_are_those_of_the_window_and_stand_in_the_row_of_their_network(asked, tmp_path):
    _, _, files = asked
    torch.manual_seed(0)
    net = PoseNet(NetSpec("test_byobnet", landmarks=True, decoder_width=8), CROP.size).eval()
    save_net(tmp_path / "net", net, CROP, {})
    said = predictions(tmp_path / "net", files, (0, 1), 0, parts=2)
    plain, spec = found(), pipeline()
    networks = plain | {"second": said}
    costs = {name: {"parameters": 1.0, "latency_ms": 1.0} for name in networks}
    recordings = {test: np.array(["a"] * count) for test, count in TESTS.items()}
    rows = evaluate.table(spec, said.truth, with_ensembles(spec, networks), networks, costs, recordings)
    for test in TESTS:
        shards = [read_shard(Path(file)) for file in files[test]]
        windows = torch.from_numpy(np.concatenate([shard.images for shard in shards]))
        with torch.inference_mode():
            points = net.landmarks(window(windows, CROP.size)).points_BL2.numpy()
        np.testing.assert_allclose(said.marks[test].said_ML3[..., :2], points, atol=1e-3)
        scales = np.concatenate([shard.scales for shard in shards])[:, None]
        true = np.concatenate([shard.landmarks for shard in shards])[..., :2]
        by_hand = landmark_errors(points * scales, true * scales, "box").mean()
        scored = {row.name: row.scores.get("nme_box") for row in rows if row.test == test}
        assert scored.pop("second") == pytest.approx(by_hand, rel=1e-4)
        assert set(scored.values()) == {None}


def test_every_prediction_is_written_beside_its_own_label(tmp_path):
    each = found()
    whole = with_ensembles(pipeline(), each)
    truth = each[Role.HARD].truth
    ids = {test: [f"{test} {i}" for i in range(count)] for test, count in TESTS.items()}
    people = {test: [f"{test} {i // 3}" for i in range(count)] for test, count in TESTS.items()}
    evaluate.write_predictions(tmp_path / "p.parquet", ids, people, truth, whole)
    rows = read_table(tmp_path / "p.parquet").to_pylist()
    assert len(rows) == len(whole) * sum(TESTS.values())
    for row in rows:
        i = ids[row["test"]].index(row["sample_id"])
        said, true = ([row[prefix + key] for key in ("pitch", "yaw", "roll")] for prefix in ("", "true_"))
        assert row["person"] == people[row["test"]][i]
        np.testing.assert_allclose(said, whole[row["network"]][row["test"]][i], rtol=1e-5)
        np.testing.assert_allclose(true, truth[row["test"]][i], rtol=1e-5)


def test_moved_labels_are_judged_on_validation_faces_by_the_students_teachers(monkeypatch, tmp_path):
    import ray

    network = NetworkResult(1.0, 1, 1, 1.0, ())
    changes = {"distill.teachers": ["second"], "distill.mirrored": True, "augment.turn_deg": 7}
    student = student_with(pipeline().student, changes)
    for split in ("train", "val", "test"):
        (tmp_path / f"drawn.{split}").mkdir()
        (tmp_path / f"drawn.{split}" / "part-00000.parquet").touch()
    monkeypatch.setattr(ray, "remote", lambda **_: lambda function: SimpleNamespace(remote=lambda *words: words))
    inputs, results = (
        {"shards": tmp_path, "teachers": Path("/t")},
        {"student": StudentResult(network, network, student)},
    )
    stage = SimpleNamespace(spec=pipeline(), inputs=inputs, results=Results(results))
    files = [str(tmp_path / "drawn.val" / "part-00000.parquet")]
    at = placed(stage.spec, "evaluate", {"CPU": 1, "GPU": 0})
    assert evaluate.drift_task(stage, at) == ({"second": "/t/second"}, files, to_dict(student.augment), True, "bins")


def test_a_table_is_computed_with_all_digits(asked, monkeypatch):
    """Whatever else a process allows: the exported file is held to 1e-3 degrees of these angles."""
    folder, _, files = asked
    seen = []
    monkeypatch.setattr(scoring, "predict", lambda *_: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        predict_files(str(folder), files[next(iter(TESTS))][:1], (0, 1), 0)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]


def test_spreads_hold_on_validation_faces_and_are_tried_on_test_faces(asked, tmp_path):
    """Calibrated on the very faces that are tested, an interval holds at least as many as it says."""
    folder, _, files = asked
    said = predictions(folder, files, (0, 1), 0)
    (test, *_) = TESTS
    one = {name: {test: getattr(said, name)[test]} for name in ("truth", "angles", "spreads")}
    validated = replace(said, **one)
    found = sureness(validated, said)
    assert {(row.test, row.level) for row in found.intervals} == {(name, level) for name in TESTS for level in LEVELS}
    for row in found.intervals:
        errors = euler_error(said.angles[row.test], said.truth[row.test])
        widths = found.calibration.half_widths(said.spreads[row.test])[LEVELS.index(row.level)]
        np.testing.assert_allclose(row.calibrated, (errors <= widths * (1 + 1e-12)).mean(0))
        assert row.test != test or (np.array(row.calibrated) >= row.level - 1e-9).all()
    errors = euler_error(said.angles[test], said.truth[test])
    assert found.risk[test][-1] == pytest.approx(errors.mean())
