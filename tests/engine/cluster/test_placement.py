"""Who gets which part of the cluster, and on which device a worker computes."""

import os
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from hpe_core.errors import SpecError
from hpe_core.spec.cluster import STAGES, ClusterSpec
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.training import OptimSpec
from workflows.engine.cluster.connection import rows_bytes, worker_device
from workflows.engine.cluster.placement import Placement, placed
from workflows.engine.config import load


@cache
def spec_of(*words: str) -> PipelineSpec:
    return load(["tests/tiny.yaml"], words)


def at(stage: str, *words: str, cpus: float = 64, gpus: float = 0) -> Placement:
    return placed(spec_of(*words), stage, {"CPU": cpus, "GPU": gpus})


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (0, {"teachers": (2, 0), "search": (2, 0), "labels": (32, 0), "student": (2, 0), "evaluate": (64, 0)}),
        (1, {"teachers": (1, 1), "search": (2, 0.5), "labels": (1, 1), "student": (1, 1), "evaluate": (4, 0.25)}),
        (8, {"teachers": (2, 1), "search": (2, 1), "labels": (8, 1), "student": (2, 1), "evaluate": (8, 1)}),
    ],
)
def test_without_a_key_every_stage_uses_what_is_there(gpus, expected):
    found = {stage: at(stage, gpus=gpus) for stage in STAGES}
    assert {stage: (place.at_once, place.gpus) for stage, place in found.items()} == expected
    assert {place.workers for place in found.values()} == {(1, 1)}, "more workers would make other batches"


def test_a_local_cluster_that_counts_more_cpus_than_cores_scores_on_its_cores():
    local = {"CPU": 4.0, "GPU": 0.0, "cores": 2.0}
    place = placed(spec_of(), "evaluate", local)
    assert (place.at_once, place.cpus) == (2, 2), "a third process would load torch and wait"
    assert place.line == "up to 2 tasks at once, each with 2 CPU and no GPU (there: 4 CPU)"
    assert placed(spec_of("cluster.stages.evaluate.workers=1"), "evaluate", local).at_once == 1
    assert placed(spec_of(), "teachers", local).at_once == 2


@pytest.mark.parametrize(("concurrent", "gpus"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (9, 1), (9, 2), (40, 8)])
def test_trials_share_gpus_evenly_and_not_without_end(concurrent, gpus):
    place = at("search", f"search.concurrent={concurrent}", "search.trials=99", gpus=gpus)
    on_one = int(1 / place.gpus)
    assert on_one <= 4 and place.at_once == min(concurrent, on_one * gpus)
    assert place.at_once == concurrent or on_one == 4, "all that are wanted at once, if they may"
    assert (on_one - 1) * gpus < concurrent, "no smaller share than that takes"


def test_a_stage_has_its_own_keys_and_else_the_clusters():
    words = ["cluster.gpus_per_worker=1", "cluster.cpus_per_worker=2", "cluster.threads_per_worker=2"]
    words += ["cluster.stages.search={gpus: 0.25, cpus: 4, threads: 3}", "cluster.stages.teachers.workers=4"]
    words += ["cluster.stages.evaluate.gpus=0", "cluster.stages.labels.workers=3"]
    places = {stage: at(stage, *words, gpus=8) for stage in STAGES}
    held = {stage: (place.cpus, place.gpus, place.threads) for stage, place in places.items()}
    assert held.pop("search") == (4, 0.25, 3) and held.pop("evaluate") == (2, 0, 2)
    assert set(held.values()) == {(2, 1, 2)}
    assert {stage: place.workers[1] for stage, place in places.items() if place.workers != (1, 1)} == {"teachers": 4}
    assert (places["teachers"].at_once, places["labels"].at_once) == (2, 3)
    assert places["labels"].resources == {"CPU": 2, "GPU": 1, "memory": 10**9}
    assert places["evaluate"].resources == {"CPU": 2, "memory": 10**9}


def test_no_machine_gets_more_workers_than_its_memory_holds():
    """Two gigabytes on each of two machines: three workers of a gigabyte and a half find no third place."""

    def with_memory(*words: str, machines: Sequence[float] = (2e9, 2e9), stage: str = "evaluate") -> Placement:
        there = {"CPU": 64.0, "GPU": 0.0} | {f"memory {number}": size for number, size in enumerate(machines)}
        return placed(spec_of(*words), stage, there)

    found = with_memory()
    assert (found.at_once, found.memory) == (4, 10**9)
    assert with_memory("cluster.memory_gb_per_worker=0.5").at_once == 8
    own = with_memory("cluster.stages.evaluate.memory_gb=2")
    assert (own.at_once, own.resources["memory"]) == (2, 2 * 10**9)
    assert with_memory("cluster.memory_gb_per_worker=1.5").at_once == 2
    little = with_memory(machines=[6e8])
    assert little.at_once == 1 and 5e8 < little.memory <= 6e8, "what no machine has would be waited for without end"
    four = with_memory("cluster.stages.teachers.workers=4", machines=[2.6e9], stage="teachers")
    assert (four.at_once, four.workers) == (1, (4, 4)) and 4 * four.memory <= 2.6e9, "the workers of a network, too"
    gpus = {"CPU": 64.0, "GPU": 2.0, "GPU 0": 0.0, "GPU 1": 2.0, "memory 0": 64e9, "memory 1": 8e9}
    found = placed(spec_of("cluster.memory_gb_per_worker=16"), "teachers", gpus)
    assert found.memory <= 8e9 and found.at_once == 1, "beside the GPU, not on the machine without one"
    nothing = with_memory("cluster.memory_gb_per_worker=0")
    assert nothing.at_once == 64 and "memory" not in nothing.resources
    assert at("evaluate").at_once == 64, "a cluster that grows: nobody knows what its machines will have"


def test_a_worker_lies_on_one_machine():
    """A network that waits for room counts as failed after a while: no more are started than the machines hold."""

    def on(machines: Sequence[int], *words: str, gpus: int = 0) -> Placement:
        known = {f"CPU {number}": float(cpus) for number, cpus in enumerate(machines)}
        known |= {f"GPU {number}": float(gpus) for number in range(len(machines))}
        there = {"CPU": float(sum(machines)), "GPU": float(gpus * len(machines))}
        return placed(spec_of(*words), "search", there | known)

    many = ("search.concurrent=9", "search.trials=9")
    assert on([4, 4, 4], *many, "cluster.cpus_per_worker=3").at_once == 3, "of twelve CPUs, not four"
    assert on([4, 4, 4], *many, "cluster.cpus_per_worker=2").at_once == 6
    assert on([16, 2], *many, "cluster.cpus_per_worker=4").at_once == 4
    assert on([4, 4], *many, "cluster.cpus_per_worker=4", "cluster.gpus_per_worker=1", gpus=4).at_once == 2
    assert on([64, 2], *many, "cluster.cpus_per_worker=2", "cluster.gpus_per_worker=1", gpus=2).at_once == 3
    assert on([8, 8], *many, "cluster.gpus_per_worker=0.6", gpus=2).at_once == 4
    with pytest.raises(SpecError, match="1 workers of 5 CPU do not fit into a cluster of 8 CPU on 2 machines"):
        on([4, 4], "cluster.cpus_per_worker=5")


def test_a_share_lies_on_one_gpu():
    """Two GPUs hold two trials of 0.6, though 2 / 0.6 is more than three."""
    words = ("search.concurrent=9", "search.trials=9", "cluster.stages.search.gpus=0.6")
    assert at("search", *words, gpus=2).at_once == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.workers=2", "cluster.gpus_per_worker=0.5"], "2 workers of a network in teachers with 0.5 GPUs each"),
        (["cluster.stages.student={workers: 4, gpus: 0.2}"], "4 workers of a network in student .*NCCL refuses"),
        (["cluster.stages.student={workers: [1, 4], gpus: 0.2}"], "4 workers of a network in student .*NCCL refuses"),
        (["cluster.gpus_per_worker=1.5"], "more than 1 is whole"),
        (["cluster.gpus_per_worker=-1"], "at least 0"),
        (["cluster.gpus_per_worker=atuo"], "cluster.gpus_per_worker is 'atuo'; a number is needed; or .*'auto'"),
        (["cluster.workers=[4, 2]"], r"workers \[4, 2\] of teachers are no range"),
        (["cluster.workers=0"], "cluster.workers"),
        (["cluster.stages.search.workers=2"], "unknown key cluster.stages.search.workers"),
        (["cluster.stages.teacher.gpus=1"], "unknown key cluster.stages.teacher; did you mean 'teachers'?"),
    ],
)
def test_what_cannot_be_is_said_before_ray_starts(words, said):
    with pytest.raises(SpecError, match=said):
        spec_of(*words)


def test_trials_and_actors_may_share_a_gpu_though_networks_have_several_workers():
    place = at("search", "cluster.workers=2", "cluster.stages.search.gpus=0.5", gpus=2)
    assert (place.at_once, place.gpus) == (2, 0.5)


@pytest.mark.parametrize(
    ("stage", "words", "there", "said"),
    [
        ("teachers", ["cluster.gpus_per_worker=1"], {}, "teachers: 1 workers of 1 CPU, 1 GPU do not fit .* 0 GPU"),
        ("student", ["cluster.workers=2"], {"gpus": 1}, "2 workers of 1 CPU, 1 GPU do not fit into .* 64 CPU, 1 GPU"),
        (
            "labels",
            ["cluster.stages.labels.cpus=5"],
            {"cpus": 4},
            "labels: .* 5 CPU do not fit into .* 4 CPU",
        ),
        ("evaluate", ["cluster.stages.evaluate.cpus=5"], {"cpus": 4}, "evaluate: "),
        ("search", ["cluster.stages.search.gpus=1"], {}, "search: "),
    ],
)
def test_what_does_not_fit_is_a_sentence(stage, words, there, said):
    with pytest.raises(SpecError, match=said):
        at(stage, *words, **there)


def test_a_cluster_without_cpus_to_read_is_no_cluster_for_a_stream():
    """Workers that hold every CPU would wait for Ray Data's tasks, and those for a CPU, for ever."""
    pair = ("cluster.workers=2", "data.stream_shards=2")
    stream = (*pair, "data.ingest=ray_data")
    assert at("teachers", *pair, cpus=4).at_once == 2 and at("teachers", *stream, cpus=4).at_once == 1
    said = r"2 workers of 1 CPU with 2 CPU each to read for them \(data.ingest=ray_data\) do not fit into .* 4 CPU"
    with pytest.raises(SpecError, match=said):
        at("teachers", *stream, "cluster.readers_per_worker=2", cpus=4)
    assert at("search", *stream, "cluster.readers_per_worker=2", cpus=4).at_once == 1, "a trial has one worker"


def test_elastic_networks_have_the_cluster_one_after_the_other():
    """Several that grow into the same room would take it from each other, and one of them would wait for its fewest."""
    words = ("cluster.stages.teachers.workers=[2, 8]", "cluster.gpus_per_worker=1")
    assert at("teachers", *words, gpus=8).at_once == 1 and at("teachers", *words, gpus=3).at_once == 1
    assert at("teachers", *words, gpus=16).at_once == 2
    with pytest.raises(SpecError, match="2 workers of 1 CPU, 1 GPU do not fit"):
        at("teachers", *words, gpus=1)
    assert spec_of("cluster.workers=[3, 5]").cluster.workers_of("student") == (3, 5)
    with pytest.raises(SpecError, match="leaves less than two faces for each of 9 parts"):
        spec_of("cluster.workers=[1, 9]")


def test_a_user_reads_it_in_one_line():
    assert at("search", cpus=4).line == "2 trials at once, each with 1 CPU and no GPU (there: 4 CPU)"
    assert at("search", cpus=8, gpus=1).line == "2 trials at once, each with 1 CPU and 0.5 GPU (there: 8 CPU, 1 GPU)"
    line = at("teachers", "cluster.workers=[1, 4]", cpus=4).line
    assert line == "1 network, with 1 to 4 workers of 1 CPU and no GPU (there: 4 CPU)"
    assert at("labels", cpus=8).line == "up to 4 actors at once, each with 1 CPU and no GPU (there: 8 CPU)"
    line = at("student", "cluster.workers=2", "data.ingest=ray_data", cpus=8).line
    assert line == "2 networks at once, each with 2 workers of 1 CPU and no GPU and 1 CPU to read for it (there: 8 CPU)"


def test_workers_cut_the_batch_or_scale_it():
    cut = OptimSpec(batch_size=64, lr=0.01)
    assert cut.over(4) == cut
    for rule, lr in (("linear", 0.04), ("sqrt", 0.02), ("none", 0.01)):
        scaled = OptimSpec(batch_size=64, lr=0.01, batch_scaling="scale", lr_scaling=rule)
        assert scaled.over(1) == scaled and scaled.over(4).batch_size == 256
        assert scaled.over(4).lr == pytest.approx(lr)
    with pytest.raises(SpecError, match="batch_size 16 is no multiple of cluster.workers 3"):
        spec_of("cluster.workers=3")
    networks = ("teachers.byobnet", "teachers.resnet", "student")
    spec_of("cluster.workers=3", *(f"{network}.optim.batch_scaling=scale" for network in networks))


@pytest.mark.parametrize(
    ("assigned", "visible", "there", "expected"),
    [
        ([], "", True, "cpu"),  # a run without GPUs on a machine that has some
        ([], "0,1", True, "cpu"),
        ([0], "0", True, "cuda:0"),
        ([1], "0,1", True, "cuda:1"),  # the second worker of a network on its node
        (["3"], "3", True, "cuda:0"),
        ([2], None, True, "cuda:0"),
        ([0], "0", False, "cpu"),  # a torch without CUDA
    ],
)
def test_a_worker_computes_on_what_ray_has_assigned_to_it(monkeypatch, assigned, visible, there, expected):
    import ray
    import torch

    asked: list[Any] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: assigned)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", visible)
    device = worker_device(3)
    assert str(device) == expected and asked == [3, *([device] if device.type == "cuda" else [])]


@pytest.mark.parametrize(
    ("assigned", "share"), [({"GPU": 0.25, "CPU": 1.0}, 0.25), ({"GPU": 2.0}, 1), ({"CPU": 1.0}, 1)]
)
def test_trials_that_share_a_gpu_share_what_rows_may_take_of_it(monkeypatch, assigned, share):
    import ray

    assert rows_bytes(4) == 4e9
    actor: str | None = "an actor"
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(
        ray,
        "get_runtime_context",
        lambda: SimpleNamespace(get_assigned_resources=lambda: assigned, get_actor_id=lambda: actor),
    )
    assert rows_bytes(4) == share * 4e9
    actor = None
    assert rows_bytes(4) == 4e9, "a driver has no share"


def test_outside_of_ray_nobody_has_assigned_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert worker_device().type == "cpu"


def test_a_cluster_may_be_asked_without_a_configuration():
    every = ClusterSpec()
    assert {every.workers_of(stage) for stage in STAGES} == {(1, 1)}
    assert (every.fewest_workers, every.most_workers) == (1, 1)
    assert ClusterSpec(workers=(2, 3)).fewest_workers == 2
