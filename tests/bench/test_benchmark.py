"""The benchmarks' harness: both sides do the same work, in turn, and what is printed is what was measured.

No ratio is asserted: it belongs to the machine. The two sides that need Ray are not run here.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from hpe_core.data.rows import read_shard, shard_files
from hpe_core.geometry.crop import offset_grid
from hpe_core.spec.data import CropSpec, DatasetSpec, DataSpec
from workflows import benchmark
from workflows.benchmark import Lab, Row, Run
from workflows.engine.config import guarded
from workflows.engine.stage import StageFailed

CROP = CropSpec(48, 6)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ExitStack() as stack, benchmark.one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "DISTINCT", 4)  # four to render, sixteen to read
        yield Lab(tmp_path_factory.mktemp("benchmark"), 16, 1, stack)


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    seen: list[tuple[str, int]] = []

    def side(name):
        def timed(turn):
            seen.append((name, turn))
            return {name: float(turn)}

        return timed

    found = benchmark.interleaved([side("a"), side("b")], 3)
    assert seen == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]}


def test_a_rate_is_what_was_done_over_the_time_it_took(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    assert benchmark.rate("faces", lambda turn: 20 + turn)(4) == {"faces": 6.0}


def test_sides_that_did_different_work_fail():
    benchmark.must_agree(True, "nothing")
    with pytest.raises(StageFailed, match="the same work: pixels"):
        benchmark.must_agree(False, "pixels")


@pytest.mark.parametrize("size", [64, 112, 224])
def test_windows_are_the_warps_of_every_offset(lab, size):
    stored, pairs = benchmark.window_sides(lab.heads[:3], size, 6)
    assert stored == size + 12
    batches = []
    for dx, dy in offset_grid(6, 3):
        window, warp = pairs["windows"](dx, dy), pairs["warps"](dx, dy)
        assert window.flags.c_contiguous and warp.flags.c_contiguous
        assert window.shape == warp.shape == (3, size, size, 3)
        assert benchmark.grey_levels(window, warp) <= 1
        batches.append(window.copy())
    assert len({batch.tobytes() for batch in batches}) == 25, "an offset that moves nothing is not measured"


def test_windows_would_notice_a_warp_of_another_offset(lab):
    _, pairs = benchmark.window_sides(lab.heads[:3], 64, 6)
    assert benchmark.grey_levels(pairs["windows"](3, 0), pairs["warps"](0, 3)) > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_and_loader_deliver_the_same_pictures_once_each(lab, workers):
    faces = lab.rows(CROP)
    files = benchmark._shards(lab.scratch(), faces, CROP, "raw")
    loader = benchmark.loader(lab, [face.crop.box for face in faces], CROP, 8, workers)
    ours = benchmark.checksum(benchmark.epoch(files, 8))
    assert len(ours) == len(faces) == 16
    assert ours == benchmark.checksum(loader)
    wrong = benchmark.loader(lab, [face.crop.box.moved(2, 0) for face in faces], CROP, 8, 0)
    assert ours != benchmark.checksum(wrong)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_both_sides_of_reading_count_the_same_faces(lab, encoding, monkeypatch):
    """With 16 faces in batches of 5 both leave one out; nothing is counted that was not delivered."""
    counts = []
    monkeypatch.setattr(
        benchmark, "consumed", lambda batches, real=benchmark.consumed: counts.append(real(batches)) or 1
    )
    faces = lab.rows(CROP)
    files = benchmark._shards(lab.scratch(), faces, CROP, encoding)
    loader = benchmark.loader(lab, [face.crop.box for face in faces], CROP, 5, 0)
    benchmark.shard_side(encoding, files, 5)(0)
    benchmark.loader_side("loader", lambda: loader)(0)
    assert counts == [15] * 6, "a first epoch, four later ones, and the rival's"


def test_shards_written_here_hold_the_whole_archive(lab):
    from hpe_core.datasets.plan import plan_dataset
    from hpe_core.datasets.registry import open_source

    data, folder = lab.data(CROP), lab.scratch()
    jobs = plan_dataset("heads", open_source(data.datasets["heads"]), data).jobs
    assert benchmark.write_here(jobs, data, folder) == len(lab.pictures) == 16
    shards = [read_shard(file) for split in ("train", "val") for file in shard_files(folder, "heads", split)]
    ids = [sample for shard in shards for sample in shard.sample_ids]
    assert sorted(ids) == [path.stem for path in lab.pictures]
    angles = {s: tuple(a) for shard in shards for s, a in zip(shard.sample_ids, shard.angles, strict=True)}
    np.testing.assert_allclose(angles["image00002"], lab.heads[2].pose, atol=1e-3)


def test_the_plain_loop_runs_every_epoch_and_says_when(lab):
    from workflows.training.networks import as_plain

    job, folder = benchmark.training_job(lab), lab.scratch()
    benchmark.plain_worker(as_plain(job), str(folder))
    run = Run(0.0, [(when, row) for when, row in json.loads((folder / "ends.json").read_text())], 64)
    assert len(run.curve) == job.spec.optim.epochs and (folder / "model.safetensors").is_file()
    assert [when for when, _ in run.ends] == sorted(when for when, _ in run.ends)
    assert len(shard_files(job.shards, "heads", "train")) == 1
    assert len(read_shard(shard_files(job.shards, "heads", "train")[0])) == benchmark.training_rows(lab) == 64


def test_figures_of_a_run_leave_the_first_epoch_out():
    ends = [(107.0, 5.0, 4.0), (110.0, 2.0, 6.0), (114.0, 2.0, 9.0)]
    rows = [(when, {"epoch_seconds": spent, "cpu_seconds": cpu, "val/mae": 9.0}) for when, spent, cpu in ends]
    assert Run(100.0, rows, faces=70).figures == {"inside": 140 / 4, "across": 140 / 7, "cpu": 140 / 5, "start": 2.0}


def test_the_table_shows_medians_and_the_range_of_the_ratio():
    row = Row("read", "faces/s", [4000.0, 9000.0, 5000.0], [1000.0, 1000.0, 500.0], "a loader", "faces")
    assert row.ratios == [4.0, 9.0, 10.0]
    line = benchmark.markdown([row]).splitlines()[-1]
    assert line == "| read | 5,000 faces/s | 1,000 faces/s (a loader) | 9 (4..10) | faces; 3 repeats |"
    assert [benchmark.number(v) for v in (12345.6, 456.7, 7.891, 0.01234)] == ["12,300", "457", "7.89", "0.0123"]


def test_json_holds_every_repeat_and_no_name_of_the_machine(monkeypatch, capsys):
    import platform

    monkeypatch.setitem(benchmark.BENCHMARKS, "render", lambda lab: [benchmark._render_at(lab, 64)])
    assert guarded(lambda: benchmark.main(["render", "--json", "--faces", "16", "--repeat", "2"])) == 0
    text = capsys.readouterr().out
    report = json.loads(text)
    (row,) = report["rows"]
    assert row["unit"] == "heads/s" and len(row["ours"]) == len(row["rival"]) == 2 and min(row["ours"]) > 0
    assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
    assert report["settings"] == {"names": ["render"], "faces": 16, "repeat": 2}
    assert not platform.node() or platform.node() not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["windws"], "unknown benchmark 'windws'; did you mean 'windows'?"),
        (["render", "raed"], "did you mean 'read'?"),
        (["--faces", "3"], "--faces must be at least 16, got 3"),
        (["--repeat", "0"], "--repeat must be at least 1, got 0"),
    ],
)
def test_a_typo_ends_with_one_sentence_and_code_2(words, said, capsys):
    assert guarded(lambda: benchmark.main(words)) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_names_keep_the_order_of_the_table():
    assert benchmark.chosen(["train", "read"]) == ["read", "train"]
    assert benchmark.chosen([]) == list(benchmark.BENCHMARKS)


def test_no_head_of_the_archive_is_filtered():
    """The side through Ray drops poses beyond the limit, the others do not."""
    from hpe_core.render.scene import render_head

    limit = DataSpec({"a": DatasetSpec("aflw2000", "a")}, ("a",), ()).limit_deg
    poses = [render_head(3, i, size=32).pose for i in range(24)]
    assert np.abs(poses).max() <= limit
