"""Whether a store holds what the undisturbed run made: the manifests' hashes, the files' own, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from hpe_core.system.files import file_sha256
from workflows.reproduction.compared import compare
from workflows.reproduction.receipt import Receipt
from workflows.storage.contents import MANIFEST
from workflows.survival.ground import expect, made_in

LEFTOVERS = ("networks/*/ray-train", "*/*/*/.part-*", "*/*/.*.damaged")


def expect_same(store: Path, reference: Path, stages: Sequence[str]) -> None:
    """Raises Lost that names what differs. Bytes of the files are hashed, not only believed."""
    ours, theirs = made_in(store), made_in(reference)
    missing = [stage for stage in stages if stage not in ours.manifests]
    expect(not missing, f"not finished: {', '.join(missing)}")
    for stage in stages:
        (folder,) = [path.parent for path in (store / stage).glob(f"*/{MANIFEST}")]
        for name, listed in ours.manifests[stage]["files"].items():
            whole = (folder / name).is_file() and file_sha256(folder / name) == listed["sha256"]
            expect(whole, f"{stage}: {name} is not what its manifest says")
    wanted = {stage: theirs.manifests[stage] for stage in stages}
    differing = [part for part in compare(Receipt("", "", wanted), ours).parts if not part.same]
    expect(not differing, "; ".join(f"{part.stage} {part.what}: {part.told or 'differs'}" for part in differing))
    left = [str(path.relative_to(store)) for pattern in LEFTOVERS for path in store.glob(pattern)]
    expect(not left, f"left lying about: {', '.join(left[:3])}")
