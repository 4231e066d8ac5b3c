"""The check of a GPU, in its small form on a CPU: it runs whole, alone, and where little is installed."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from hpe_core.errors import SpecError
from workflows.bench import gpu, gpu_parts
from workflows.engine.config import REPO
from workflows.engine.cost import tflops_of

ABSENT = ("ray", "mlflow", "omegaconf", "pydantic", "albumentations", "optuna", "matplotlib", "scipy", "jinja2")


def small(*words: str) -> tuple[int, str, str]:
    """Runs it where only what it says it needs can be imported."""
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"
    run = "import runpy; runpy.run_module('workflows.bench.gpu', run_name='__main__')"
    command = [sys.executable, "-c", f"{absent}; {run}", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.longer
def test_every_part_runs_on_a_cpu_without_ray_or_albumentations(tmp_path):
    code, out, said = small("--small", "--json", "--device", "cpu")
    report = json.loads(out)
    assert code == 0, said
    assert {line["part"] for line in report["lines"]} == set(gpu_parts.PARTS)
    assert all(line["value"] > 0 for line in report["lines"] if line["unit"].endswith("/s")), "rates are of work done"
    held = {line["what"]: line["holds"] for line in report["lines"] if line["holds"] is not None}
    assert held and all(held.values())
    assert any("albumentations" in said for said in report["left_out"])
    table = tmp_path / "gpu.json"
    table.write_text(json.dumps(report | {"device": "a GPU"}))
    rates = [line["value"] * line["gflop"] / 1e3 for line in report["lines"] if line["part"] == "train"]
    assert tflops_of(table) == pytest.approx(sorted(filter(None, rates))[1]), "what plan takes is what this prints"
    table.write_text(out)
    with pytest.raises(SpecError, match="gpu.json was measured on a CPU"):
        tflops_of(table)


@pytest.mark.longer
def test_a_part_runs_alone_and_a_wrong_word_is_named():
    code, out, said = small("--small", "batch", "--device", "cpu")
    assert code == 0 and "| batch |" in out and "| train |" not in out, said
    code, _, said = small("--small", "bach")
    assert code == 2 and "unknown part 'bach'; did you mean 'batch'?" in said
    code, _, said = small("--device", "cpu")
    assert code == 2 and "there is no GPU here; --small" in said


def test_what_does_not_hold_is_said_by_the_exit_code(monkeypatch, capsys):
    lines = {"batch": lambda bench: iter([gpu_parts.Line("batch", "x", "faces/s", 1.0, 2.0, "y", holds=False)])}
    monkeypatch.setattr(gpu, "PARTS", lines)
    assert gpu.main(["--small", "--device", "cpu"]) == 1
    assert "| 0.50 | NO |" in capsys.readouterr().out


def test_a_part_that_fails_is_a_line_and_takes_nothing_with_it(monkeypatch, capsys):
    def broken(bench):
        yield gpu_parts.Line("train", "before", "faces/s", 1.0)
        raise RuntimeError("CUDA error: an illegal instruction\nand how to find it")

    def whole(bench):
        yield gpu_parts.Line("labels", "after", "windows/s", 3.0)

    monkeypatch.setattr(gpu, "PARTS", {"train": broken, "labels": whole})
    assert gpu.main(["--small", "--device", "cpu", "--json"]) == 1
    printed = capsys.readouterr()
    told = [(line["what"], line["holds"]) for line in json.loads(printed.out)["lines"]]
    assert told == [
        ("before", None),
        ("failed: RuntimeError: CUDA error: an illegal instruction", False),
        ("after", None),
    ]
    assert "train  before  1 faces/s" in printed.err and "how to find it" in printed.err, "said before the end"


def test_nothing_is_measured_after_the_time_is_over(monkeypatch, capsys):
    clock = itertools.count(0, 100)

    def slow(bench):
        for number in range(4):
            yield gpu_parts.Line("batch", f"number {number}", "faces/s", 1.0)

    monkeypatch.setattr(gpu, "PARTS", {"batch": slow, "labels": slow})
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: float(next(clock)))
    assert gpu.main(["--small", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [line["what"] for line in report["lines"]] == ["number 0", "number 1"]
    assert [said.split(",")[0] for said in report["left_out"]] == ["batch", "labels"]


@pytest.mark.parametrize("chance", [False, True])
def test_a_training_that_chance_has_a_part_in_is_seen(monkeypatch, chance):
    """`bits` compares the files that trainings leave, also of one that went on."""
    resumed, noted = [], itertools.count()

    def fit(*_, resume, on_epoch, **__):
        def save(folder):
            folder.mkdir(parents=True)
            (folder / gpu_parts.TRAINER).write_bytes(bytes([next(noted) if chance else 0]))

        resumed.append(resume and resume.name)
        for epoch in (1, 2):
            on_epoch(gpu_parts.EpochEnd(epoch, {}, 0.0, save))

    monkeypatch.setattr(gpu_parts, "fit", fit)
    lines = list(gpu_parts.bits(gpu_parts.Bench(gpu_parts.Place(), small=True)))
    assert [line.holds for line in lines] == [not chance] * 4 and resumed == [None, None, "1"] * 2


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_a_device_that_computes_something_else_is_seen(monkeypatch, offset):
    """The second network measured is the device's; its weights are moved."""
    true = gpu_parts.PoseNet.to

    def to(net, device, *args, **options):
        net.calls = getattr(net, "calls", 0) + 1
        if net.calls > 1:
            next(net.parameters()).data.add_(offset if net.calls == 2 else 0.0)
        return true(net, device, *args, **options)

    monkeypatch.setattr(gpu_parts.PoseNet, "to", to)
    bench = gpu_parts.Bench(gpu_parts.Place(), small=True)
    lines = list(gpu_parts.parity(bench))
    fp32 = [line.holds for line in lines if "fp32" in line.what and line.holds is not None]
    assert all(fp32) == (offset == 0.0)
