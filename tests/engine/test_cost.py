"""The plan of a large run: its counts against what is really written, its hours against laws of proportion."""

import dataclasses
import json
import re
import shlex
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpe_core.data.rows import write_soft_labels
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import offset_grid
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.training import rate
from hpe_core.training.rate import flops
from workflows.engine import cost as budget
from workflows.engine.cluster.placement import placed
from workflows.engine.config import REPO, load
from workflows.engine.cost import Told, costs, figures, finished, train_faces, windows
from workflows.full_pipeline import main

TOLD = Told(faces=10_000, gpus=8, tflops=10.0, shard_rate=100.0, actors=4)


@cache
def spec_of(*overrides: str) -> PipelineSpec:
    return load(["tests/tiny.yaml"], ["cluster.gpus_per_worker=1", *overrides])


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network takes a tera-operation a face, and three in a step."""
    monkeypatch.setattr(rate, "flops", lambda net, size, backward: 3e12 if backward else 1e12)


def hours(spec: PipelineSpec, told: Told) -> dict[str, float]:
    return {cost.stage: cost.hours for cost in costs(spec, told)}


def gpu_hours(spec: PipelineSpec, told: Told) -> dict[str, float]:
    return {cost.stage: cost.gpu_hours for cost in costs(spec, told)}


def test_a_stage_takes_its_work_over_its_rate():
    """Spelt out for one network and one label pass of tests/tiny.yaml."""
    spec = spec_of()
    faces = train_faces(spec, TOLD)
    epochs = [teacher.optim.epochs for teacher in spec.teachers.values()]
    each = [n * faces * 0.3 / 3600 for n in epochs]
    found, gpu = hours(spec, TOLD), gpu_hours(spec, TOLD)
    assert found["teachers"] == pytest.approx(max(each)), "two at once on eight GPUs: the longer one counts"
    assert gpu["teachers"] == pytest.approx(sum(n * faces * 0.3 for n in epochs) / 3600)
    views = sum(
        len({w for labels in spec.label_sets() if name in labels.teachers for w in offset_grid(*labels.offsets)})
        for name in spec.teachers
    )
    assert gpu["labels"] == pytest.approx(faces * views * 0.1 / 3600)
    assert found["labels"] == pytest.approx(gpu["labels"] / 8), "labelling spreads over all GPUs"
    assert found["shards"] == pytest.approx(10_000 / 400 / 3600)


def test_hours_follow_faces_gpus_and_rates():
    spec = spec_of()
    one = hours(spec, TOLD)
    twice = hours(spec, dataclasses.replace(TOLD, faces=20_000))
    assert all(twice[stage] == pytest.approx(2 * one[stage], rel=1e-3) for stage in one)
    lonely = hours(spec, dataclasses.replace(TOLD, gpus=1))
    assert lonely["teachers"] > one["teachers"] and lonely["labels"] == pytest.approx(8 * one["labels"])
    assert gpu_hours(spec, dataclasses.replace(TOLD, tflops=20.0)) == pytest.approx(
        {stage: value / 2 for stage, value in gpu_hours(spec, TOLD).items()}
    )
    pairs = hours(spec_of("cluster.workers=2"), TOLD)
    assert pairs["student"] == pytest.approx(one["student"] / 2)


def test_a_search_costs_its_trials_and_each_of_them_its_own_epochs():
    spec = spec_of("search.trials=5", "search.concurrent=2", "search.epochs=3", "student.optim.epochs=50")
    faces = train_faces(spec, TOLD)
    assert gpu_hours(spec, TOLD)["search"] == pytest.approx(5 * 3 * faces * 0.3 / 3600)
    assert hours(spec, TOLD)["search"] == pytest.approx(3 * 3 * faces * 0.3 / 3600), "two at once: three rounds"


def test_without_a_space_there_is_one_trial_and_one_setting_to_end():
    spec = spec_of("search.space=null", "search.trials=5", "search.finalists=3")
    alone = spec_of("search.space=null", "search.trials=1")
    assert gpu_hours(spec, TOLD) == gpu_hours(alone, TOLD)
    assert (placed(spec, "search", TOLD.there).at_once, placed(spec, "student", TOLD.there).at_once) == (1, 2)


def test_mirrored_labels_ask_a_teacher_twice_about_every_window():
    def seconds(stage: str, *words: str) -> float:
        made = spec_of("search.space=null", "search.trials=0", "student.augment.jitter_px=0", *words)
        return 3600 * gpu_hours(made, TOLD)[stage] / train_faces(made, TOLD)

    mirrored, online = "student.distill.mirrored=true", "student.distill.labels=online"
    assert seconds("labels", mirrored) == pytest.approx(2 * seconds("labels", "student.distill.mirrored=false"))
    steps = seconds("student")
    plain, twice = (seconds("student", online, word) - steps for word in ("student.distill.mirrored=false", mirrored))
    assert plain > 0 and twice == pytest.approx(2 * plain)


def test_the_disk_that_is_planned_holds_the_margin_of_every_face():
    told = budget.figures(spec_of("data.crop.margin_px=8"), TOLD)
    stored = np.zeros((spec_of().data.crop.size + 16,) * 2 + (3,), np.uint8)
    assert told["raw_gb"] == pytest.approx(TOLD.faces * stored.nbytes / 1e9) and told["side_px"] == len(stored)


def test_more_jobs_than_lanes_wait_for_each_other():
    assert finished([3, 3, 3, 3], 2) == 6 and finished([5, 1, 1, 1], 2) == 5 and finished([], 3) == 0


def test_online_labels_ask_the_teachers_in_every_step_of_the_student_and_in_none_of_its_twins():
    still = "student.augment.jitter_px=0"  # online labels look K and the jitter aside, and the margin is 4
    stored, online = spec_of(still), spec_of(still, "student.distill.labels=online")
    asked = len(windows([online.label_set(online.student)])) * len(online.teachers)
    per_step = 3 + asked
    ratio = gpu_hours(online, TOLD)["student"] / gpu_hours(stored, TOLD)["student"]
    assert ratio > 1 and ratio == pytest.approx((per_step + 3) / (3 + 3))


def test_no_search_costs_nothing_and_too_few_gpus_are_a_sentence():
    assert "search" not in hours(spec_of("search.trials=0"), TOLD)
    with pytest.raises(SpecError, match="do not fit into a cluster of 1 GPU"):
        costs(spec_of("cluster.workers=2"), dataclasses.replace(TOLD, gpus=1))


@pytest.mark.parametrize(("finalists", "trials", "ended"), [(1, 4, 1), (3, 4, 3), (9, 4, 4), (9, 0, 1)])
def test_finalists_and_their_twins_are_trained_at_once(finalists, trials, ended):
    """As the student stage does: where there is no room beside finalists, the best one's twin alone. No more end than
    were tried."""
    spec = spec_of(f"search.finalists={finalists}", f"search.trials={trials}")
    lonely = dataclasses.replace(TOLD, gpus=1)
    gpu, wall = (seconds / 3600 for seconds in budget.training(spec, TOLD, spec.student, spec.student.optim.epochs, 1))
    assert gpu_hours(spec, TOLD)["student"] == pytest.approx(2 * ended * gpu)
    assert hours(spec, TOLD)["student"] == pytest.approx(wall), "eight GPUs: all at once"
    assert hours(spec, lonely)["student"] == pytest.approx((ended + 1) * wall)


def test_a_table_of_a_gpu_is_a_rate(tmp_path):
    lines = [{"part": "train", "value": value, "gflop": gflop} for value, gflop in ((1000, 3.0), (500, 8.0), (10, 1.0))]
    lines += [{"part": "train", "value": 7.0, "gflop": 0.0}, {"part": "batch", "value": 9e9, "gflop": 0.0}]
    table = tmp_path / "gpu.json"
    table.write_text(json.dumps({"device": "H100", "lines": lines}))
    assert budget.tflops_of(table) == pytest.approx(3.0)
    for text in ("{}", "no", json.dumps({"device": "H100", "lines": lines[3:]})):
        table.write_text(text)
        with pytest.raises(SpecError, match=r"gpu.json (is no table|holds no rate)"):
            budget.tflops_of(table)


def test_measured_steps_are_what_a_network_costs(monkeypatch):
    """On cores where there is no GPU, as many at once as there are."""
    monkeypatch.setattr(budget, "timed", lambda train, crop, *, backward: 0.02 if backward else 0.001)
    monkeypatch.setattr(budget, "cores", lambda: 2)
    here = dataclasses.replace(TOLD, gpus=0, tflops=0.0)
    spec = load(["tests/tiny.yaml"], ["cluster.gpus_per_worker=0"])
    epochs = [teacher.optim.epochs for teacher in spec.teachers.values()]
    assert hours(spec, here)["teachers"] == pytest.approx(max(epochs) * train_faces(spec, here) * 0.02 / 3600)


@pytest.mark.longer
def test_a_plan_times_this_machine(capsys):
    """Nothing told: the faces are counted, the networks and the loading of faces are timed."""
    words = ["plan", "-c", "tests/tiny.yaml", "cluster.gpus_per_worker=0", "search.trials=0", "--measure", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["faces"] == 108
    assert all(stage["hours"] > 0 for stage in found["stages"])


def test_operations_are_those_that_the_literature_counts():
    """ResNet18 at 224 px: 1.8 G multiply-adds; a training step is about three forward passes."""
    forward = flops(NetSpec(backbone="resnet18"), 224, backward=False)
    assert forward == pytest.approx(2 * 1.82e9, rel=0.02)
    assert 2.8 < flops(NetSpec(backbone="resnet18"), 224, backward=True) / forward < 3.1


LOOKS: list[dict[str, Any]] = [{"mirrored": True}, {"looks": (1, 0.75)}, {"looks": (1, 0.75), "mirrored": True}]


def test_every_look_is_a_pass_its_mirror_image_another_and_landmarks_that_nobody_asks_for_none():
    plain, mirrored, closer, both, marked = (
        flops(NetSpec("test_byobnet", **changes), 32, backward=False)
        for changes in (dict[str, Any](), *LOOKS, {"landmarks": True})
    )
    assert mirrored == closer == 2 * plain and both == 4 * plain and marked == plain


def test_bytes_of_labels_are_those_of_the_file(tmp_path):
    labels = tmp_path / "labels.parquet"
    logs = np.random.default_rng(0).normal(size=(400, 3, 66)).astype(np.float16)
    write_soft_labels(labels, [f"face{i}" for i in range(400)], logs, "test")
    assert logs.nbytes < labels.stat().st_size < 1.25 * logs.nbytes


def test_memory_is_that_of_the_rows():
    wide = dataclasses.replace(spec_of().data, crop=CropSpec(size=112, margin_px=8))
    spec = dataclasses.replace(spec_of(), data=wide)
    faces = train_faces(spec, TOLD)
    assert figures(spec, TOLD)["rows_gb"] == pytest.approx(faces * 3 * 128 * 128 / 1e9)


def test_workers_of_a_machine_share_its_rows_and_a_stream_has_its_own_bound():
    def memory(faces: int, *overrides: str) -> float:
        return figures(spec_of("cluster.workers=4", *overrides), dataclasses.replace(TOLD, faces=faces))["rows_gb"]

    for ingest in ("all_shards", "own_shards"):
        assert memory(10**6, f"data.ingest={ingest}") == memory(10**6, "cluster.workers=1", "data.resident_gb=1")
    streamed = memory(10**6, "data.ingest=ray_data")
    assert streamed == memory(10**9, "data.ingest=ray_data") < memory(10**9)
    assert memory(10**9, "data.ingest=ray_data", "cluster.readers_per_worker=3") == pytest.approx(3 * streamed)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tflops", "1", "--faces", "0"], "--faces must be positive"),
        (["--tflops", "1", "cluster.gpus_per_worker=0"], "uses no GPU"),
        (["--gpus", "1"], "needs one of --measure, --rates FILE and --tflops N"),
        (["--measure", "--tflops", "1"], "needs one of"),
        (["--rates", "nowhere.json"], "--rates nowhere.json is no table"),
        (["--tflops", "1"], "there is no GPU here: --gpus says"),
    ],
)
def test_what_cannot_be_planned_is_a_sentence(monkeypatch, words, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    given = ["plan", "-c", "tests/tiny.yaml", "cluster.gpus_per_worker=1", "--shard-rate", "1", "--actors", "1"]
    if "no GPU here" not in said:
        given += ["--gpus", "1"]
    with pytest.raises(SpecError, match=said):
        main([*given, *words])


def test_a_dataset_without_a_face_is_no_rate(monkeypatch):
    """Faces that are told may be nowhere yet."""
    monkeypatch.setattr(budget, "sources", lambda spec: [SimpleNamespace(refs=lambda: iter(()))])
    with pytest.raises(SpecError, match="no face was found in dataset 'heads' to measure by; --shard-rate says"):
        budget.shard_rate(spec_of())


def test_scripts_get_the_numbers_of_the_page(capsys):
    given = ["plan", "-c", "tests/tiny.yaml", "cluster.gpus_per_worker=1", "--faces", "900", "--gpus", "2"]
    given += ["--tflops", "1", "--shard-rate", "10", "--actors", "2"]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    *stages, together = found["stages"]
    assert together["hours"] == pytest.approx(sum(stage["hours"] for stage in stages))
    assert f"{found['train_faces']:,} of them to train on" in text and f"{found['shards']:,} of " in text
    for stage in found["stages"]:
        assert f"{stage['stage']:<10} {stage['gpu_hours']:10.3g}" in text


def test_the_page_says_what_the_command_prints(monkeypatch, capsys):
    """Each command of docs/planning.md is run. Its first lines are the page's; below, what follows from the networks'
    arithmetic, which is made up here, is looked at as to its form."""
    monkeypatch.setenv("HPE_DATA", "/data")
    text = (REPO / "docs" / "planning.md").read_text()
    blocks = re.findall(r"\$ hpe (plan .*?)\n(faces .*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    for command, printed in blocks:
        assert main(shlex.split(command.replace("\\\n", " "))) == 0
        said = capsys.readouterr().out
        assert said.startswith(printed.split("\n\n")[0] + "\n\n") and form(said) == form(printed)


def form(text: str) -> str:
    """Without numbers, and without the room that they take."""
    return re.sub(r"( |\d|[.,]|e\+)+", " ", text)
