"""A finished stage that has lost a byte is found before it is read, and only what was lost is made again."""

import json
from pathlib import Path

import pytest

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.files import write_json
from tests.engine.test_store import actions, spec_in
from workflows.engine.contents import inventory, misfits, set_aside_damaged
from workflows.engine.mirror import Mirror, held
from workflows.engine.receipts import fitting_receipt, receipt_file
from workflows.engine.store import Planned, Stage, StageRun, execute, finished, plan, plan_checked
from workflows.full_pipeline import check_upstream, verify
from workflows.tracking.progress import Reporter

PIECES = ("a", "b", "c")


def pieces(run: StageRun) -> dict[str, list[str]]:
    """A stage of three pieces with receipts, like the shards; says which it has made."""
    made = []
    for name in PIECES:
        piece = run.folder / "part" / f"{name}.parquet"
        if fitting_receipt(piece, name) is None:
            made.append(name)
            piece.parent.mkdir(exist_ok=True)
            piece.write_bytes(name.encode() * 1000)
            sha = inventory(run.folder)[f"part/{name}.parquet"]["sha256"]
            write_json(receipt_file(piece), {"hash": name, "sha256": sha})
    return {"made": made}


def reads(run: StageRun) -> dict[str, int]:
    return {"bytes": sum(path.stat().st_size for path in run.inputs["first"].glob("part/*.parquet"))}


TOY = (
    Stage("first", "tests.engine.test_contents:pieces", (), lambda s: {"count": s.data.datasets["heads"].count}),
    Stage("second", "tests.engine.test_contents:reads", ("first",), lambda s: {"lr": s.student.optim.lr}),
)


class Talk(Reporter):
    said: list[str]

    def say(self, text: str) -> None:
        self.__dict__.setdefault("said", []).append(text)


def run_all(spec: PipelineSpec) -> dict[str, Planned]:
    """As the pipeline does it, without Ray and MLflow."""
    with held(spec) as mirror:
        planned = {entry.stage.name: entry for entry in plan_checked(TOY, spec, mirror)}
        for entry in planned.values():
            if entry.action != "skip":
                execute(entry, spec, planned, Reporter())
            mirror.push(entry.folder)
    return planned


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_torn_or_lost_file_is_found_by_its_size_alone(tmp_path: Path) -> None:
    folder = run_all(spec_in(tmp_path))["first"].folder
    whole = inventory(folder)
    assert set(whole) == {f"part/{name}.{kind}" for name in PIECES for kind in ("json", "parquet")}
    assert misfits(folder, whole) == []
    tear(folder / "part" / "b.parquet")
    (folder / "part" / "c.parquet").unlink()
    (entry, _) = plan(TOY, spec_in(tmp_path))
    assert entry.action == "repair"
    assert entry.reason == "part/b.parquet has 999 bytes, not 1000; and 1 more"
    run_all(spec_in(tmp_path))
    assert finished(folder)["result"] == {"made": ["b", "c"]} and inventory(folder) == whole
    assert actions(plan(TOY, spec_in(tmp_path))) == ["skip", "skip"]


def test_a_flipped_bit_is_found_when_a_stage_is_about_to_read_it(tmp_path: Path) -> None:
    """Not before: a run with nothing to do hashes nothing."""
    folder = run_all(spec_in(tmp_path))["first"].folder
    whole = inventory(folder)
    flip(folder / "part" / "b.parquet")
    assert actions(plan_checked(TOY, spec_in(tmp_path), Mirror(spec_in(tmp_path)))) == ["skip", "skip"]
    changed = spec_in(tmp_path, "student.optim.lr=0.5")
    planned = {entry.stage.name: entry for entry in plan_checked(TOY, changed, Mirror(changed), ["second"])}
    assert planned["first"].action == "repair" and planned["first"].reason == "part/b.parquet is missing"
    with pytest.raises(Exception, match=r"second needs first.*part/b.parquet is missing.*full_pipeline"):
        check_upstream(planned, "second", changed)
    run_all(changed)
    assert finished(folder)["result"] == {"made": ["b"]} and inventory(folder) == whole
    assert not list(folder.rglob(".*")), "what was set aside is gone"


def test_a_repair_that_makes_other_bytes_says_so(tmp_path: Path) -> None:
    planned = run_all(spec_in(tmp_path))
    folder = planned["first"].folder
    manifest = finished(folder)
    manifest["files"]["part/a.parquet"]["sha256"] = "0" * 64
    write_json(folder / "manifest.json", manifest)
    assert set_aside_damaged(folder, manifest["files"]) == [
        "part/a.parquet is damaged: its bytes are not those that were written"
    ]
    talk = Talk()
    execute(plan(TOY, spec_in(tmp_path))[0], spec_in(tmp_path), planned, talk)
    assert len(talk.said) == 1 and "part/a.parquet came out with other bytes" in talk.said[0]


def test_a_damaged_manifest_finishes_nothing(tmp_path: Path) -> None:
    folder = run_all(spec_in(tmp_path))["first"].folder
    tear(folder / "manifest.json")
    assert actions(plan(TOY, spec_in(tmp_path))) == ["continue", "skip"]
    run_all(spec_in(tmp_path))
    assert finished(folder)["result"] == {"made": []}


def test_verify_names_what_is_damaged_and_the_next_run_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import workflows.full_pipeline

    monkeypatch.setattr(workflows.full_pipeline, "STAGES", TOY)
    spec = spec_in(tmp_path)
    assert verify(spec, as_json=False) == 0 and "nothing is finished" in capsys.readouterr().out
    folder = run_all(spec)["first"].folder
    assert verify(spec, as_json=False) == 0
    assert "first     0 of 6 files" in capsys.readouterr().out
    flip(folder / "part" / "b.parquet")
    tear(folder / "part" / "c.json")
    assert verify(spec, as_json=True) == 1
    lost = json.loads(capsys.readouterr().out)["first"]["lost"]
    assert [line.split()[0] for line in lost] == ["part/c.json", "part/b.parquet"]
    assert actions(plan(TOY, spec)) == ["repair", "skip"]
    run_all(spec)
    assert finished(folder)["result"] == {"made": ["b", "c"]} and verify(spec, as_json=False) == 0
