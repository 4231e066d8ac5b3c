"""A store on S3 or on Google's storage: what is finished is finished everywhere, and one run at a time writes."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

import hpe_core.system.disk
import workflows.storage.lease
from hpe_core.errors import SpecError
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.system.disk import DiskFull
from hpe_core.system.files import write_json
from hpe_core.system.identity import ID, id_of
from hpe_core.system.remote import Remote, RemoteError
from tests.engine.test_store import actions, spec_in
from tests.storage.test_contents import TOY, flip, run_toy, tear
from workflows.engine.plan import plan
from workflows.engine.store import Store
from workflows.full_pipeline import STAGES
from workflows.storage.contents import inventory
from workflows.storage.manifest import finished
from workflows.storage.mirror import Mirror, held

BOTH = pytest.mark.parametrize("bucket", ("s3", "gs"), indirect=True)


def here(store: str, *overrides: str) -> PipelineSpec:
    return spec_in(store, *overrides)


def seen(spec: PipelineSpec) -> list[str]:
    """What a plan says that reads the manifests there."""
    mirror = Mirror(spec)
    mirror.look()
    return actions(plan(TOY, spec, mirror.size))


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "other") -> None:
    """From now on this is another machine."""
    monkeypatch.setenv("HPE_CACHE", str(tmp_path / name))
    monkeypatch.setattr(workflows.storage.lease.platform, "node", lambda: name)


@BOTH
def test_what_one_machine_finished_another_one_skips_and_goes_on_from(store, tmp_path, monkeypatch):
    folder = run_toy(here(store))["first"].folder
    whole = inventory(folder)
    there = Remote(store).index()
    assert {name for name in there if name.startswith(f"first/{folder.name}/")} == {
        f"first/{folder.name}/{place}" for place in [*whole, "manifest.json"]
    }
    elsewhere(monkeypatch, tmp_path)
    spec = here(store)
    assert spec.folder != folder.parents[1] and seen(spec) == ["skip", "skip"]
    assert not list(spec.folder.rglob("*.parquet")), "nothing was needed yet"
    run_toy(here(store, "student.optim.lr=0.5"))
    assert inventory(spec.folder / "first" / folder.name) == whole, "what the second stage read was fetched"
    assert seen(here(store, "student.optim.lr=0.5")) == ["skip", "skip"]
    assert Remote(store).index().keys() > there.keys() and seen(here(store)) == ["skip", "skip"]


def test_the_manifest_goes_last(store, monkeypatch):
    """A run that is cut off while it sends has finished nothing there, and sends the rest the next time."""
    sent: list[str] = []
    original = Remote.send

    def until_cut(self: Remote, names: list[str]) -> int:
        names = list(names)
        if any("manifest" in name for name in names):
            raise RemoteError("the line is cut")
        sent.extend(names)
        return original(self, names)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "send", until_cut)
        with pytest.raises(RemoteError):
            run_toy(here(store))
    assert len(sent) == 1 + 6 and sent[0] == ID and not any("manifest" in name for name in Remote(store).index())
    behind = Mirror(here(store))
    behind.look()
    assert behind.lacks(plan(TOY, here(store))[0].folder)
    times = {name: entry for name, entry in Remote(store).index().items() if name in sent}
    planned = run_toy(here(store))
    assert finished(planned["first"].folder)["result"] == {"made": ["a", "b", "c"]}, "it was finished here"
    after = Remote(store).index()
    assert {name: after[name] for name in times} == times, "and is not sent twice"
    assert sum("manifest" in name for name in after) == 2


def network(spec: PipelineSpec, name: str, weights: bytes, *more: str) -> Path:
    """The folder of one that training has left, with as many of its files."""
    folder = spec.folder / "networks" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    for file in ("model.json", *more):
        (folder / file).write_bytes(b"{}")
    return folder


def test_what_is_damaged_here_does_not_go_there(store, monkeypatch, tmp_path):
    """A stage that nothing reads in this run is not hashed, so what is whole there is left alone, and fetched later.

    Nor is a network, which is never written again, whether or not this run has made a stage.
    """
    spec = here(store)
    trained = network(spec, "trained", b"weights of a network.", "result.json")
    folder = run_toy(spec)["first"].folder
    whole = inventory(folder)
    flip(folder / "part" / "b.parquet")
    tear(folder / "part" / "c.parquet")
    tear(trained / "model.safetensors")
    assert seen(spec) == ["skip", "skip"]
    with held(spec) as mirror:
        mirror.push(folder, made=False)
    assert Remote(store).read(f"first/{folder.name}/part/b.parquet") == b"b" * 1000
    run_toy(here(store, "student.optim.lr=0.4"))
    assert Remote(store).read("networks/trained/model.safetensors") == b"weights of a network."
    elsewhere(monkeypatch, tmp_path)
    run_toy(here(store, "student.optim.lr=0.5"))
    assert inventory(here(store).folder / "first" / folder.name) == whole


def test_a_piece_that_two_folders_share_is_sent_once_for_each(store, monkeypatch):
    sent: list[str] = []
    original = Remote.send
    monkeypatch.setattr(Remote, "send", lambda self, names: [sent.extend(names), original(self, names)][1])
    folders = [here(store).folder / "shards" / name for name in ("old", "grown")]
    for folder in folders:
        folder.mkdir(parents=True)
        if folder is folders[0]:
            (folder / "part.parquet").write_bytes(b"faces")
        else:
            os.link(folders[0] / "part.parquet", folder / "part.parquet")
        write_json(folder / "manifest.json", {"files": inventory(folder)})
    for _ in range(2):
        for folder in folders:
            with held(here(store)) as mirror:
                mirror.push(folder)
    wanted = [f"shards/{name}/{file}" for name in ("old", "grown") for file in ("part.parquet", "manifest.json")]
    assert [name for name in sent if not name.startswith("mlflow")] == [ID, *wanted]


def test_what_is_damaged_here_is_fetched_and_what_is_damaged_there_is_made_again(store, monkeypatch, tmp_path):
    folder = run_toy(here(store))["first"].folder
    whole = inventory(folder)
    flip(folder / "part" / "b.parquet")
    tear(folder / "part" / "c.parquet")
    run_toy(here(store, "student.optim.lr=0.5"))
    assert inventory(folder) == whole and finished(folder)["result"] == {"made": ["a", "b", "c"]}, "fetched, not made"
    content = bytearray(b"b" * 1000)
    content[500] = 0
    Remote(store).write(f"first/{folder.name}/part/b.parquet", bytes(content))
    elsewhere(monkeypatch, tmp_path)
    again = run_toy(here(store, "student.optim.lr=0.6"))["first"].folder
    assert inventory(again) == whole and finished(again)["result"] == {"made": ["b"]}
    assert Remote(store).read(f"first/{folder.name}/part/b.parquet") == b"b" * 1000, "and sent"


def test_files_lost_there_are_noticed_by_the_plan(store, monkeypatch, tmp_path):
    folder = run_toy(here(store))["first"].folder
    Remote(store).delete(f"first/{folder.name}/part/c.parquet")
    assert seen(here(store)) == ["skip", "skip"], "it is still here"
    elsewhere(monkeypatch, tmp_path)
    assert seen(here(store)) == ["repair", "skip"]


@BOTH
def test_mlflows_files_follow(store, monkeypatch, tmp_path):
    spec = here(store)
    (spec.folder / "mlartifacts" / "deep").mkdir(parents=True)
    (spec.folder / "mlflow.db").write_bytes(b"runs")
    (spec.folder / "mlartifacts" / "deep" / "card.md").write_bytes(b"card")
    run_toy(spec)
    elsewhere(monkeypatch, tmp_path)
    run_toy(here(store))
    assert (here(store).folder / "mlflow.db").read_bytes() == b"runs"
    assert (here(store).folder / "mlartifacts" / "deep" / "card.md").read_bytes() == b"card"
    time.sleep(1.01 - time.time() % 1)  # S3 keeps whole seconds
    (here(store).folder / "mlflow.db").write_bytes(b"more runs")
    run_toy(here(store))
    elsewhere(monkeypatch, tmp_path, "cache")
    assert here(store).folder == spec.folder
    run_toy(here(store))
    assert (spec.folder / "mlflow.db").read_bytes() == b"more runs", "what is newer there replaces ours"


def test_a_store_has_one_id_on_all_machines_and_before_its_run_has_ended(store, monkeypatch, tmp_path):
    """Whoever works in it next shows MLflow the same runs, also after a kill. The id there is the store's."""
    with held(here(store)) as mirror:
        known = id_of(mirror.folder)
        assert Remote(store).read(ID) == known.encode()
    (here(store).folder / ID).write_text("a" * 32)  # of a working folder whose bucket was another
    elsewhere(monkeypatch, tmp_path)
    Mirror(here(store)).look()  # as `sync` does while somebody else holds the store
    assert id_of(here(store).folder) == known
    elsewhere(monkeypatch, tmp_path, "cache")
    with held(here(store)) as mirror:
        assert id_of(mirror.folder) == known and Remote(store).read(ID) == known.encode()
    Remote(store).delete(ID)  # as in a store of an earlier version
    with held(here(store)):
        assert Remote(store).read(ID) == known.encode()


def test_networks_are_sent_with_the_stages_and_fetched_for_training_alone(store, monkeypatch, tmp_path):
    network(here(store), "trained", b"weights", "result.json")
    network(here(store), "half", b"weights")
    run_toy(here(store))
    assert {name for name in Remote(store).index("networks")} == {
        f"networks/trained/{name}" for name in ("model.safetensors", "model.json", "result.json")
    }
    elsewhere(monkeypatch, tmp_path)
    mirror = Mirror(here(store))
    mirror.look()
    assert not (mirror.folder / "networks").exists(), "a plan needs none"
    mirror.bring_networks()
    assert (mirror.folder / "networks" / "trained" / "model.safetensors").read_bytes() == b"weights"


def test_a_network_that_was_fetched_in_part_neither_counts_nor_stops_a_run(store, monkeypatch, tmp_path):
    """Killed in between: what makes it count comes last. Without its weights, lost or not yet here, it is not sent."""
    network(here(store), "trained", b"weights", "result.json")
    folder = run_toy(here(store))["first"].folder
    elsewhere(monkeypatch, tmp_path)
    batches: list[set[str]] = []
    original = Remote.copy_here
    monkeypatch.setattr(Remote, "copy_here", lambda self, found: [batches.append(set(found)), original(self, found)][1])
    with held(here(store)) as mirror:
        batches.clear()
        mirror.bring_networks()
    names = [sorted(Path(name).name for name in batch) for batch in batches]
    assert names == [["model.json", "model.safetensors"], ["result.json"]]
    lost = here(store).folder / "networks" / "trained"
    (lost / "model.safetensors").unlink()
    (network(here(store), "lost", b"weights", "result.json") / "model.safetensors").unlink()
    with held(here(store)) as mirror:
        mirror.push(mirror.folder / "first" / folder.name, made=False)
        assert not Remote(store).index("networks/lost")
        mirror.bring_networks()
    assert (lost / "model.safetensors").read_bytes() == b"weights"


@BOTH
def test_an_address_that_is_none_is_one_sentence(bucket, monkeypatch):
    absent = f"{bucket[:2]}://no-such-bucket-here/runs"
    with pytest.raises(SpecError, match=f"store: {absent}/lease.json cannot be written"):
        run_toy(here(absent))
    denied = RemoteError("s3://bucket/runs cannot be listed: AWS Error ACCESS_DENIED")
    monkeypatch.setattr(Remote, "index", Mock(side_effect=denied))
    with pytest.raises(SpecError, match="store: s3://bucket/runs cannot be listed"):  # nothing has begun: exit code 2
        Store.open(STAGES, here(f"{bucket}/runs"))


def test_too_little_room_for_what_is_fetched_is_said_before(store, tmp_path, monkeypatch):
    run_toy(here(store))
    elsewhere(monkeypatch, tmp_path)
    monkeypatch.setattr(hpe_core.system.disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskFull, match=r"6 files of first/\w+ need 0.00 MB in .*: 0.00 MB are missing"):
        run_toy(here(store, "student.optim.lr=0.5"))
    assert not list(here(store).folder.rglob("*.parquet"))
