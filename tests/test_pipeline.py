"""The whole road for real: a run that is killed and continued, and a second run that skips it all.

Every run is the command that a user types, in a process of its own with a Ray of its own. All laws are read off one
finished run, for a start of Ray costs more than these networks do. It was killed whole among its teachers and continued
by the same command. `test_killed.py` cuts another one down in three stages.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hpe_core.data.rows import read_shard, read_soft_labels, read_table
from tests.road import (
    CONFIG,
    NAMES,
    PLANTED,
    Done,
    call,
    check_tracking,
    environment,
    has_checkpoint,
    killed_when,
    nothing_left,
    result_of,
    run,
    sound,
    stage_folder,
    tail,
    words,
)
from workflows.engine.config import load
from workflows.engine.plan import plan
from workflows.full_pipeline import STAGES
from workflows.survival.ground import expect_untouched, kept

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Finished:
    store: Path
    done: Done  # the command that ended it
    cut: str  # what the killed command had said
    before: dict[Path, int]  # what it had finished, and when


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that was killed whole as soon as a teacher had a checkpoint, and continued by the same command."""
    home = tmp_path_factory.mktemp("finished")
    store, log = home / "store", home / "log"
    assert killed_when(has_checkpoint, store, log, everything=True), log.read_text()
    before = kept(store)
    return Finished(store, sound(run("run", store)), log.read_text(), before)


def test_a_killed_run_is_continued_by_the_same_command(finished):
    """What was finished stays as it is, a teacher goes on from its checkpoint, and nothing is left lying about."""
    assert "shards: done in" in finished.cut and "teachers: done in" not in finished.cut
    assert len(finished.before) > len(NAMES), "the shards with their receipts"
    expect_untouched(finished.before)
    actions = [line.split()[1] for line in finished.done.err.splitlines()[: len(NAMES)]]
    assert actions == ["skip", "continue", *["run"] * 5]
    nothing_left(finished.store)


def test_every_stage_leaves_a_manifest_and_the_table_has_every_network(finished):
    faces = {name: result_of(finished.store, name) for name in NAMES}["shards"]
    assert faces["kept"] + faces["quarantined"] + faces["filtered"] == faces["input"] == 108 and faces["filtered"]
    ensembles = ("teachers' ensemble", "offset ensemble", "combined ensemble")
    for network in ("byobnet", "resnet", *ensembles, "hard", "distilled"):
        (line,) = re.findall(rf"^{network}  .*$", finished.done.out, re.MULTILINE)
        assert len(re.findall(r"\d+\.\d\d", line)) >= 6, f"pitch, yaw, roll, MAE, geodesic and size in: {line}"
    (time_line,) = re.findall(r"^time .*$", finished.done.out, re.MULTILINE)
    (report,) = re.findall(r"^report +(\S+)$", finished.done.out, re.MULTILINE)
    assert Path(report).is_file() and time_line.endswith(" s")


def test_a_password_in_the_environment_is_in_no_line_and_no_file(finished):
    """Manifests, MLflow's database and artifacts, Tune's pickles, the report, the card, every exported file."""
    assert PLANTED not in finished.done.out + finished.done.err + finished.cut
    files = [path for path in finished.store.rglob("*") if path.is_file()]
    assert {"mlflow.db", "manifest.json", "report.html", "student.onnx"} <= {path.name for path in files}
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []


def test_soft_labels_are_the_mean_of_all_teachers_over_all_windows(finished):
    import torch

    from hpe_core.networks.checkpoint import load_net

    torch.set_num_threads(1)  # on a busy machine threads of one sum wait for each other, a hundred times longer
    shards, labels = stage_folder(finished.store, "shards"), stage_folder(finished.store, "labels")
    nets = [load_net(stage_folder(finished.store, "teachers") / name).net for name in ("byobnet", "resnet")]
    crop = load([CONFIG]).data.crop
    files = sorted(shards.glob("heads.train/part-*.parquet"))
    sets = {2: "byobnet+resnet-K2-d2", 4: "byobnet+resnet-K4-d2"}
    assert result_of(finished.store, "labels")["sets"] == [*sets.values()] and len(files) >= 2
    for radius, name in sets.items():
        for file in files:
            shard = read_shard(file)
            found = read_soft_labels(labels / name / "heads.train" / file.name, shard.sample_ids)
        # The last shard by hand: every window cut out of the pixels, every network asked, all of it averaged.
        total, count = np.zeros(found.shape), 0
        for dy in range(-radius, radius + 1, 2):
            for dx in range(-radius, radius + 1, 2):
                top, left = crop.margin_px + dy, crop.margin_px + dx
                cut = shard.images[:, top : top + crop.size, left : left + crop.size].copy()
                for net in nets:
                    with torch.inference_mode():
                        total += net.predict(torch.from_numpy(cut)).double().numpy()
                    count += 1
        assert count == len(nets) * {2: 9, 4: 25}[radius]
        np.testing.assert_allclose(found.astype(float), np.log(total / count), rtol=1e-3, atol=1e-3)


def test_the_onnx_file_gives_the_degrees_that_were_scored(finished):
    import onnxruntime

    model = stage_folder(finished.store, "publish") / result_of(finished.store, "publish")["onnx"]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    table = read_table(stage_folder(finished.store, "evaluate") / "predictions.parquet").to_pylist()
    scored = {row["sample_id"]: row for row in table if row["network"] == "distilled"}
    crop, seen = load([CONFIG]).data.crop, 0
    for file in sorted(stage_folder(finished.store, "shards").glob("heads.test/part-*.parquet")):
        shard = read_shard(file)
        middle = slice(crop.margin_px, crop.margin_px + crop.size)
        angles = session.run(["angles"], {"images": np.ascontiguousarray(shard.images[:, middle, middle])})[0]
        for sample_id, group, found, true in zip(shard.sample_ids, shard.groups, angles, shard.angles, strict=True):
            row = scored[sample_id]
            assert row["person"] == group
            assert np.abs(found - [row["pitch"], row["yaw"], row["roll"]]).max() < 0.01
            assert np.abs(true - [row["true_pitch"], row["true_yaw"], row["true_roll"]]).max() < 1e-4
            seen += 1
    assert seen == len(scored) > 0


def test_mlflow_holds_parent_stages_networks_trials_and_the_champion(finished, tmp_path):
    """And all of it lies in the store: an MLflow that knows nothing is brought up to it."""
    check_tracking(finished.store / "mlflow.db")
    told = run("sync", finished.store)
    assert (told.code, told.out) == (0, "MLflow has all that the store says\n"), tail(told)
    told = run("sync", finished.store, f"mlflow.uri=sqlite:///{tmp_path / 'new.db'}")
    assert told.code == 0 and told.out.startswith("sent to MLflow: "), tail(told)
    check_tracking(tmp_path / "new.db")


def test_a_second_run_skips_everything_without_ray_or_torch(finished):
    script = (
        "import sys; from workflows.full_pipeline import main; code = main(sys.argv[1:])\n"
        "heavy = {'ray', 'mlflow', 'torch', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    before = {path: path.stat().st_mtime_ns for path in finished.store.rglob("*")}
    again = sound(call([sys.executable, "-c", script, *words("run", finished.store)[2:]], environment()))
    lines = again.err.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    for line in lines:
        assert re.fullmatch(r"\w+ +skip +[0-9a-f]{12}  finished \d{4}-\d\d-\d\d [\d:]{8} in \d+ s", line), line
    assert "distilled" in again.out, "the table is printed again"
    assert {path: path.stat().st_mtime_ns for path in finished.store.rglob("*")} == before
    # 15 s is the promise for a machine of its own; what this process used says more on a busy one.
    assert again.seconds < 15 or os.getloadavg()[0] > 3, f"{again.seconds:.0f} s"


def test_plan_names_the_changed_key_and_what_depends_on_it(finished):
    def reasons(*overrides: str) -> dict[str, str]:
        entries = plan(STAGES, load([CONFIG], [f"store={finished.store}", *overrides]))
        return {entry.stage.name: entry.reason for entry in entries if entry.action != "skip"}

    assert reasons() == {}
    assert reasons("student.distill.hard_weight=0.5") == {
        "search": "student.distill.hard_weight 0.05 -> 0.5",
        "student": "student.distill.hard_weight 0.05 -> 0.5; search changed",
        "evaluate": "student changed",
        "publish": "search changed; student changed; evaluate changed",
    }
    typed = call(words("plan", finished.store, "data.limit_deg=71"), environment())
    assert typed.code == 0 and "data.limit_deg 70.0 -> 71.0" in typed.out.splitlines()[0], tail(typed)
    *stages, whole = typed.out.splitlines()
    assert [line.split()[1] for line in stages] == ["run"] * len(NAMES) and all("; took " in line for line in stages)
    assert re.fullmatch(r"to run +7 stages; 7 of them took \d+ s when they last ran in this store", whole)
