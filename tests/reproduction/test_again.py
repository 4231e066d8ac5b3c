"""Receipts are read from stores; a run's code is ours, or its commit's, or not to be had."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpe_core.errors import SpecError
from tests.reproduction.receipts import receipt, write_store
from workflows import reproduce
from workflows.reproduction import again
from workflows.reproduction.receipt import Receipt, read_receipt


def test_a_store_with_one_finished_run_or_the_runs_own_folder(tmp_path):
    home = write_store(tmp_path)
    write_store(tmp_path, "4567", status="KILLED")
    found = read_receipt(str(tmp_path))
    assert found == read_receipt(str(home)) and next(iter(found.manifests)) == "shards"
    assert found.all_of("commit") == ["1" * 40] and found.commit == "2" * 40
    assert found.all_of("packages") == ["torch==2.15.0"]
    write_store(tmp_path, "89ab")
    with pytest.raises(SpecError, match="holds 2 finished runs; name one of"):
        read_receipt(str(tmp_path))
    (tmp_path / "labels" / "labels-hash" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "search")
    with pytest.raises(SpecError, match="labels, search has no manifest"):
        read_receipt(str(home))


@pytest.mark.parametrize(
    ("run", "said"),
    [("nowhere", "neither a folder nor"), (".", "holds no finished run"), ("0" * 32, "mlflow.uri=URI")],
)
def test_what_is_no_run_is_one_sentence(monkeypatch, tmp_path, run, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=said):
        read_receipt(run)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one file and two commits, in the place of ours; our code is another than the receipt's."""
    root = tmp_path / "clone"
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    for text in ("old", "new"):
        (root / "file").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", text], check=True)
    monkeypatch.setattr(again, "REPO", root)
    monkeypatch.setattr(again, "load", lambda files, words: None)
    return root


def ours(monkeypatch: pytest.MonkeyPatch, found: Receipt) -> None:
    """Our code is the receipt's."""
    same = [SimpleNamespace(stage=SimpleNamespace(name=n), code=m["code"]) for n, m in found.manifests.items()]
    monkeypatch.setattr(again, "plan", lambda stages, spec: same)


def test_the_runs_commit_is_checked_out_and_goes_again(clone, monkeypatch, tmp_path):
    old = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD~"], capture_output=True, text=True).stdout.strip()
    found = receipt(lambda made: [manifest["made_by"].update(commit=old) for manifest in made.values()])
    found.manifests["labels"]["made_by"]["commit"] = "5" * 40  # who made the last stage counts
    monkeypatch.setattr(again, "plan", lambda stages, spec: [])
    with again.code_of(found, tmp_path / "c.yaml", []) as root:
        assert (root / "file").read_text() == "old" and root != clone
    assert not root.exists() and (clone / "file").read_text() == "new"
    trees = subprocess.run(["git", "-C", str(clone), "worktree", "list"], capture_output=True, text=True).stdout
    assert len(trees.splitlines()) == 1
    ours(monkeypatch, found)
    with again.code_of(found, tmp_path / "c.yaml", []) as root:
        assert not (root / "file").exists() or root == clone, "where the code is the same nothing is checked out"


@pytest.mark.parametrize("commit", ["unknown", "3" * 40, f"{'4' * 40}-dirty"])
def test_code_that_nobody_has_ends_it(clone, monkeypatch, tmp_path, commit):
    found = receipt(lambda made: [manifest["made_by"].update(commit=commit) for manifest in made.values()])
    ours(monkeypatch, receipt(lambda made: made["labels"]["code"].update(more="m")))
    with (
        pytest.raises(SpecError, match=rf"differs from the run's in labels, and its commit \({commit}\)"),
        again.code_of(found, tmp_path / "c.yaml", []),
    ):
        pass


def test_a_store_that_holds_something_else_is_left_alone(tmp_path):
    write_store(tmp_path)
    with pytest.raises(SpecError, match="holds other runs"):
        again.run_again(receipt(), tmp_path, {})
    assert not (tmp_path / "reproduced.yaml").exists()
    (tmp_path / "reproduced.yaml").write_text("name: another run, done again here\n")
    with pytest.raises(SpecError, match="holds other runs"):
        again.run_again(receipt(), tmp_path, {})


def test_the_command_compares_says_so_and_writes_it_down(monkeypatch, tmp_path, capsys):
    home, asked = write_store(tmp_path / "store"), []

    def once_more(found: Receipt, store: Path, changes: dict[str, str]) -> Receipt:
        asked.append((store, changes))
        store.mkdir(parents=True, exist_ok=True)
        return read_receipt(str(home))

    monkeypatch.setattr(reproduce, "run_again", once_more)
    new = tmp_path / "new"
    assert reproduce.main([str(home), f"store={new}", "data.limit_deg=70"]) == 0
    assert asked == [(new, {"cluster.address": "local", "data.limit_deg": "70"})]
    assert capsys.readouterr().out.endswith("reproduced: every byte and every figure is the same\n")
    assert '"reproduced": true' in (new / "reproduced.json").read_text()
    with pytest.raises(SpecError, match="tolerance=-1 is no number"):
        reproduce.main([str(home), "tolerance=-1"])
    with pytest.raises(SpecError, match="one run is named"):
        reproduce.main(["tolerance=1"])


def test_a_run_works_in_the_folder_of_its_code(tmp_path):
    """Ray hands its workers the working folder, before PYTHONPATH: elsewhere they would run other code."""
    write = "import os, pathlib; pathlib.Path('here').write_text(os.environ['PYTHONPATH'])"
    assert again._ended([sys.executable, "-c", write], tmp_path) == 0
    assert (tmp_path / "here").read_text().split(os.pathsep)[0] == str(tmp_path)
    assert again._ended([sys.executable, "-c", "raise SystemExit(7)"], tmp_path) == 7
