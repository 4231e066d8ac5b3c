"""A finished stage that has lost a byte is found before it is read, and only what was lost is made again."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.files import write_json
from tests.engine.test_store import actions, run_all, spec_in
from workflows.engine.pipeline import check_upstream, verify
from workflows.engine.plan import plan
from workflows.engine.results import StageResult
from workflows.engine.runner import execute
from workflows.engine.stage import Stage, StageRun
from workflows.engine.store import Plan, Store
from workflows.storage.contents import inventory, misfits, set_aside_damaged
from workflows.storage.manifest import finished
from workflows.storage.receipts import fitting_receipt, receipt_file
from workflows.tracking.progress import Reporter

PIECES = ("a", "b", "c")


@dataclass(frozen=True)
class Made(StageResult):
    made: tuple[str, ...]


@dataclass(frozen=True)
class Size(StageResult):
    bytes: int


def pieces(run: StageRun) -> Made:
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
    return Made(tuple(made))


def reads(run: StageRun) -> Size:
    return Size(sum(path.stat().st_size for path in run.inputs["first"].glob("part/*.parquet")))


TOY = (
    Stage("first", pieces, (), lambda s: {"count": s.data.datasets["heads"].count}),
    Stage("second", reads, ("first",), lambda s: {"lr": s.student.optim.lr}),
)


def run_toy(spec: PipelineSpec) -> Plan:
    planned: Plan = run_all(TOY, spec)
    return planned


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_torn_or_lost_file_is_found_by_its_size_alone(tmp_path):
    folder = run_toy(spec_in(tmp_path))["first"].folder
    whole = inventory(folder)
    assert set(whole) == {f"part/{name}.{kind}" for name in PIECES for kind in ("json", "parquet")}
    assert misfits(folder, whole) == []
    tear(folder / "part" / "b.parquet")
    (folder / "part" / "c.parquet").unlink()
    (entry, _) = plan(TOY, spec_in(tmp_path))
    assert entry.action == "repair"
    assert entry.reason == "part/b.parquet has 999 bytes, not 1000; and 1 more"
    run_toy(spec_in(tmp_path))
    assert finished(folder)["result"] == {"made": ["b", "c"]} and inventory(folder) == whole
    assert actions(plan(TOY, spec_in(tmp_path))) == ["skip", "skip"]


def test_a_flipped_bit_is_found_when_a_stage_is_about_to_read_it(tmp_path):
    """Not before: a run with nothing to do hashes nothing."""
    folder = run_toy(spec_in(tmp_path))["first"].folder
    whole = inventory(folder)
    flip(folder / "part" / "b.parquet")
    assert actions(Store.open(TOY, spec_in(tmp_path)).checkout().values()) == ["skip", "skip"]
    changed = spec_in(tmp_path, "student.optim.lr=0.5")
    planned = Store.open(TOY, changed).checkout(["second"])
    assert planned["first"].action == "repair" and planned["first"].reason == "part/b.parquet is missing"
    with pytest.raises(Exception, match=r"second needs first.*part/b.parquet is missing.*run first"):
        check_upstream(planned, "second", changed)
    run_toy(changed)
    assert finished(folder)["result"] == {"made": ["b"]} and inventory(folder) == whole
    assert not list(folder.rglob(".*")), "what was set aside is gone"


def test_a_repair_that_makes_other_bytes_says_so(tmp_path):
    planned = run_toy(spec_in(tmp_path))
    folder = planned["first"].folder
    manifest = finished(folder)
    manifest["files"]["part/a.parquet"]["sha256"] = "0" * 64
    write_json(folder / "manifest.json", manifest)
    said = "part/a.parquet is damaged: its bytes are not those that were written"
    assert set_aside_damaged(folder, manifest["files"]) == [said]
    store = Store.open(TOY, spec_in(tmp_path))
    _, (said,) = execute(store, planned, store.plan()["first"], Reporter())
    assert "part/a.parquet came out with other bytes" in said


def test_verify_names_what_is_damaged_and_the_next_run_repairs_it(tmp_path):
    spec = spec_in(tmp_path)
    assert verify(TOY, spec, as_json=False) == ("nothing is finished yet for this configuration", True)
    folder = run_toy(spec)["first"].folder
    text, whole = verify(TOY, spec, as_json=False)
    assert whole and "first     0 of 6 files" in text
    flip(folder / "part" / "b.parquet")
    tear(folder / "part" / "c.json")
    text, whole = verify(TOY, spec, as_json=True)
    lost = json.loads(text)["first"]["lost"]
    assert not whole and [line.split()[0] for line in lost] == ["part/c.json", "part/b.parquet"]
    assert actions(plan(TOY, spec)) == ["repair", "skip"]
    run_toy(spec)
    assert finished(folder)["result"] == {"made": ["b", "c"]} and verify(TOY, spec, as_json=False)[1]
