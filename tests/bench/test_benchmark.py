"""The benchmarks' harness: both sides do the same work, in turn, and what is printed is what was measured.

No ratio is asserted: it belongs to the machine. The sides that need Ray are not run here.
"""

import json
import pickle
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from hpe_core.data.batch import FaceData
from hpe_core.data.rows import read_shard, shard_files
from hpe_core.spec.data import CropSpec
from workflows import benchmark
from workflows.bench import crops, reading, training, writing
from workflows.bench.shared import children, common
from workflows.bench.shared import lab as laboratory
from workflows.bench.shared.common import Row
from workflows.bench.shared.lab import Lab
from workflows.engine.config import guarded
from workflows.engine.stage import StageFailed

CROP = CropSpec(48, 6)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ExitStack() as stack, common.one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "DISTINCT", 4)  # four to render, sixteen to read
        yield Lab(tmp_path_factory.mktemp("benchmark"), 16, 1, stack)


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    seen: list[tuple[str, int]] = []

    def side(name):
        def timed(turn):
            seen.append((name, turn))
            return {name: float(turn)}

        return timed

    found = common.interleaved([side("a"), side("b")], 3)
    assert seen == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found == {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]}


def test_a_rate_is_what_was_done_over_the_time_it_took(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    assert common.rate("faces", lambda turn: 20 + turn)(4) == {"faces": 6.0}


def test_sides_that_did_different_work_fail():
    common.must_agree(True, "nothing")
    with pytest.raises(StageFailed, match="the same work: pixels"):
        common.must_agree(False, "pixels")


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_and_loader_deliver_the_same_pictures_once_each(lab, workers):
    faces = lab.rows(CROP)
    files = laboratory.shards_in(lab.scratch(), faces, CROP)
    loader = reading.loader(lab, [face.crop.box for face in faces], CROP, 8, workers)
    ours = reading.checksum(reading.epoch(FaceData(files), 8, 0, 0))
    assert len(ours) == len(faces) == 16
    assert ours == reading.checksum(loader)
    wrong = reading.loader(lab, [face.crop.box.moved(2, 0) for face in faces], CROP, 8, 0)
    assert ours != reading.checksum(wrong)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_both_sides_of_reading_count_the_same_faces(lab, encoding, monkeypatch):
    """With 16 faces in batches of 5 both leave one out; nothing is counted that was not delivered."""
    counts = []
    monkeypatch.setattr(reading, "consumed", lambda batches, real=reading.consumed: counts.append(real(batches)) or 1)
    faces = lab.rows(CROP)
    files = laboratory.shards_in(lab.scratch(), faces, CROP, encoding)
    loader = reading.loader(lab, [face.crop.box for face in faces], CROP, 5, 0)
    reading.shard_side(encoding, files, 5)(0)
    common.rate("loader", lambda _: reading.consumed(loader))(0)
    assert counts == [15] * 6, "a first epoch, four later ones, and the rival's"


def test_shards_written_here_hold_the_whole_archive(lab):
    data, folder = lab.data(CROP), lab.scratch()
    assert children.write_here(writing.jobs_of(data), data, folder) == len(lab.pictures) == 16
    with pytest.raises(StageFailed, match="15 of 16 faces written"):
        writing.whole(lab, 15)
    shards = [read_shard(file) for split in ("train", "val") for file in shard_files(folder, "heads", split)]
    ids = [sample for shard in shards for sample in shard.sample_ids]
    assert sorted(ids) == [path.stem for path in lab.pictures]
    angles = {s: tuple(a) for shard in shards for s, a in zip(shard.sample_ids, shard.angles, strict=True)}
    np.testing.assert_allclose(angles["image00002"], lab.heads[2].pose, atol=1e-3)


def test_the_plain_loop_runs_every_epoch_and_says_when(lab):
    job, notes = training.training_job(lab), lab.scratch() / "notes"
    children.train_here(job, notes)
    ends = [json.loads(line) for line in notes.read_text().splitlines()]
    assert len(ends) == job.spec.optim.epochs and (notes.parent / "model.safetensors").is_file()
    assert [when for when, _ in ends] == sorted(when for when, _ in ends)
    assert min(training.figures(0.0, ends, 64).values()) > 0
    assert len(shard_files(job.shards, "heads", "train")) == 1
    assert len(read_shard(shard_files(job.shards, "heads", "train")[0])) == training.epoch_faces(lab) == 64


def test_a_worker_s_figures_are_noted_as_the_plain_loop_s_are(tmp_path):
    """Through pickle, as Ray brings the reporter to its worker."""
    reporter = pickle.loads(pickle.dumps(children.Noting(tmp_path / "ray")))
    reporter.metrics("run", {"val/mae": 9.0}, 1, 2500)
    reporter.say("nothing that is noted")
    children.note(tmp_path / "plain", 2.5, {"val/mae": 9.0})
    (ours,), (plain,) = ((tmp_path / name).read_text().splitlines() for name in ("ray", "plain"))
    (when, figures), (also, others) = json.loads(ours), json.loads(plain)
    assert when == also == 2.5 and figures["val/mae"] == others["val/mae"] == 9.0
    assert 0 < figures["cpu_seconds"] <= others["cpu_seconds"]


def test_figures_of_a_run_leave_the_first_epoch_out():
    ends = [(107.0, 5.0, 4.0), (110.0, 2.0, 6.0), (114.0, 2.0, 9.0)]
    rows = [(when, {"epoch_seconds": spent, "cpu_seconds": cpu}) for when, spent, cpu in ends]
    assert training.figures(100.0, rows, 70) == {"inside": 140 / 4, "across": 140 / 7, "cpu": 140 / 5, "start": 2.0}


def test_the_table_shows_medians_and_the_range_of_the_ratio():
    row = Row("read", "faces/s", [4000.0, 9000.0, 5000.0], [1000.0, 1000.0, 500.0], "a loader", "faces")
    assert row.ratio == {"median": 9.0, "min": 4.0, "max": 10.0}
    line = common.markdown([row]).splitlines()[-1]
    assert line == "| read | 5,000 faces/s | 1,000 faces/s (a loader) | 9 (4..10) | faces; 3 repeats |"
    assert [common.number(v) for v in (12345.6, 456.7, 7.891, 0.01234)] == ["12,300", "457", "7.89", "0.0123"]


def test_json_holds_every_repeat_and_no_name_of_the_machine(monkeypatch, capsys):
    monkeypatch.setattr(crops, "SIZES", (64,))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it for its children; put back here
    assert guarded(lambda: benchmark.main(["render", "--json", "--faces", "16", "--repeat", "2"])) == 0
    text = capsys.readouterr().out
    report = json.loads(text)
    (row,) = report["rows"]
    assert row["unit"] == "heads/s" and len(row["ours"]) == len(row["rival"]) == 2 and min(row["ours"]) > 0
    assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
    assert report["settings"] == {"names": ["render"], "faces": 16, "repeat": 2}
    assert not platform.node() or platform.node() not in text


def test_names_keep_the_order_of_the_table_and_help_knows_them_all():
    assert list(benchmark.chosen(["train", "read"])) == ["read", "train"]
    assert benchmark.chosen([]) == benchmark.benchmarks()
    listed = [line.split()[0] for line in str(benchmark.__doc__).splitlines() if line.startswith("    ")]
    assert listed[3:] == list(benchmark.benchmarks())


def test_the_peak_is_that_of_children_too():
    code = "held = b'x' * 200_000_000; import time; time.sleep(1.1)"  # two samples
    before = writing.megabytes()
    peak = writing.peak_megabytes(lambda: subprocess.run([sys.executable, "-c", code], check=True))
    assert before + 150 < peak < before + 1000
    with pytest.raises(ZeroDivisionError):
        writing.peak_megabytes(lambda: 1 // 0)
