"""A run once more: the receipt's configuration in a new store, by the code that made it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hpe_core.errors import SpecError, check, say
from hpe_core.system.files import write_atomic
from workflows.engine.config import REPO, load
from workflows.engine.plan import plan
from workflows.full_pipeline import STAGES
from workflows.reproduction.compared import compare
from workflows.reproduction.receipt import Receipt, from_store
from workflows.storage.code import python_path
from workflows.storage.contents import MANIFEST
from workflows.storage.manifest import finished

PATIENCE_S = 60  # for a run that was asked to stop
PLACES = ("root", "boxes", "model", "pretrained", "start")  # keys whose values can be paths


def run_again(receipt: Receipt, store: Path, changes: Mapping[str, str]) -> Receipt:
    """The receipt's configuration in a store of its own, with its code: first the shards, then all of it.

    Raises SpecError where the code cannot be had or the faces are others, and ends as the run ends where it fails.
    """
    config = store / "reproduced.yaml"
    ours = config.exists() and config.read_text() == receipt.config
    check(ours or not (store / "pipeline").exists(), f"store={store} holds other runs: choose another folder")
    write_atomic(config, receipt.config)
    write_atomic(store / "constraints.txt", "\n".join([*receipt.all_of("packages"), ""]))
    words = [f"store={store}", "mlflow.uri=", *(f"{key}={_placed(key, value)}" for key, value in changes.items())]
    before = {file: file.stat().st_mtime_ns for file in store.glob("pipeline/*/run.json")}
    with code_of(receipt, config, words) as root:
        said = "a commit that is checked out is on this machine alone, so the run is cluster.address=local"
        check(root == REPO or changes.get("cluster.address") == "local", said)
        for verb in ("shards", "run"):
            command = [sys.executable, str(root / "workflows" / "full_pipeline.py"), verb, *words]
            code = _ended([*command, "-c", str(config)], root)
            if code:
                raise SystemExit(code)  # its sentence has been said
            if verb == "shards":
                made = max(store.glob(f"shards/*/{MANIFEST}"), key=_written)
                faces = compare(receipt, Receipt(str(store), "", {"shards": finished(made.parent)}))
                said = "\n".join(f"{part.what}: {part.told}" for part in faces.parts if not part.same)
                check(not faces.data_differ, f"the datasets are not those of the run:\n{said}")
    told = max(store.glob("pipeline/*/run.json"), key=_written)
    if before.get(told) == _written(told):
        say(f"nothing was run again: {store} had finished before")
    return from_store(told.parent)


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns


def _placed(key: str, value: str) -> str:
    """The run has another working folder: a path that is there from here is written out."""
    is_path = key.split(".")[-1] in PLACES and bool(value) and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value


def _ended(command: Sequence[str], root: Path) -> int:
    """Run it, with this code first for its workers, too: Ray hands them the working folder. Returns the exit code.

    Stopped, it is asked to stop, and has time to close Ray.
    """
    env = os.environ | {"PYTHONPATH": python_path(root)}
    process = subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.DEVNULL)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PATIENCE_S)
        process.kill()
        raise


@contextmanager
def code_of(receipt: Receipt, config: Path, words: Sequence[str]) -> Iterator[Path]:
    """The folder of the code that made the run: ours where it is the same, else the receipt's commit, checked out.

    Raises SpecError where it is not, and no commit holds it.
    """
    try:
        here = {entry.stage.name: entry.code for entry in plan(STAGES, load([str(config)], words))}
        changed = [name for name, manifest in receipt.manifests.items() if here.get(name) != manifest["code"]]
    except SpecError as error:
        changed = [f"the configuration ({error})"]
    if not changed:
        yield REPO
        return
    commits = receipt.all_of("commit") or [receipt.commit]
    said = f"this code differs from the run's in {', '.join(changed)}"
    commit = [*receipt.manifests.values()][-1].get("made_by", {}).get("commit", commits[-1])
    if len(commits) > 1:
        say(f"the stages were made by several commits, {', '.join(commits)}: that of the last stage is taken")
    git = ["git", "-C", str(REPO)]
    asked = [*git, "cat-file", "-e", f"{commit}^{{commit}}"]  # fails for `unknown`, and with `-dirty` behind it
    known = (REPO / ".git").exists() and subprocess.run(asked, capture_output=True).returncode == 0
    check(known, f"{said}, and its commit ({commit}) is not here: run this in a clone of the repository that holds it")
    say(f"{said}: commit {commit} is checked out for it")
    with tempfile.TemporaryDirectory(prefix="hpe-code-") as place:
        root = Path(place) / "code"
        added = subprocess.run([*git, "worktree", "add", "--detach", str(root), commit], capture_output=True, text=True)
        if added.returncode:
            raise SpecError(f"commit {commit} cannot be checked out: {' '.join(added.stderr.split())[-300:]}")
        try:
            yield root
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(root)], capture_output=True)
