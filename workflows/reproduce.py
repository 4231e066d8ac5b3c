"""Runs again what a receipt says, and compares: the same digit for digit, or by how many degrees not.

    python workflows/reproduce.py runs store=/tmp/again             the one finished run of the store `runs`
    python workflows/reproduce.py runs/pipeline/0123456789ab        one of several; the new store is below `reproduced`
    python workflows/reproduce.py RUN_ID mlflow.uri=http://host:5000   a run that only MLflow knows

The configuration is the receipt's, with its seeds. Its code is this one where that is the same, and else the receipt's
commit, checked out for the time of the run. Python, packages and processors that differ from the receipt's are named;
the receipt's versions are written to `constraints.txt` in the new store. The shards come first: other faces end it.
Other keys are laid over the configuration, for example `data.datasets.aflw.root=/here`, or `cluster.address=...`, which
is `local` if nothing is said. MLflow is left alone: the new run tells its own store.

The same: bytes of shards, weights and labels, the search's trials, every figure of the table but times. On the same
processors and versions that is what is asked for. Elsewhere sums come out with other last bits, and a training makes of
them what another seed makes: no MAE of the table may lie further than `tolerance=DEGREES` from the receipt's.
"""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpe_core.errors import check, say
from hpe_core.system.files import write_json
from hpe_core.system.packages import versions
from hpe_core.system.processor import processor
from hpe_core.system.remote import is_remote
from workflows.engine.commandline import CommandParser
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, absolute, guarded, tell
from workflows.reproduction.again import run_again
from workflows.reproduction.compared import Comparison, compare
from workflows.reproduction.receipt import Receipt, read_receipt

TOLERANCE = 1.0  # degrees of MAE between two processors, where nothing is said
CODES = {0: "reproduced", EXIT_FAILED: "not reproduced, or a stage failed", EXIT_BAD_INPUT: "bad receipt or input"}
KEYS = "own keys: store=FOLDER (reproduced/HASH), tolerance=DEGREES; others are those of hpe_core/spec"


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(__doc__ or "", KEYS, CODES)
    parser.add_argument("words", nargs="*", metavar="RUN | key=value", help="a store, its pipeline/HASH, or a run's id")
    parser.add_argument("--json", action="store_true", help="the comparison as one JSON object on standard output")
    args = parser.parse_args(argv)
    runs = [word for word in args.words if "=" not in word]
    check(len(runs) == 1, "one run is named: a store, a folder STORE/pipeline/HASH, or a run's id in MLflow")
    own = {key: value for key, equals, value in (word.partition("=") for word in args.words) if equals}
    receipt = read_receipt(runs[0], own.pop("mlflow.uri", ""))
    asked = own.pop("tolerance", None)
    limit = None if asked is None else degrees(asked)
    packages = [f"{name}=={version}" for name, version in versions().items()]
    here = {"python": [platform.python_version()], "processors": [processor()], "packages": packages}
    for sentence in differences(receipt, here):
        say(sentence)
    name = str(list(receipt.manifests.values())[-1]["hash"])
    place = own.pop("store", f"reproduced/{name}")
    check(not is_remote(place), f"store={place}: the new run is compared on this machine, in a folder")
    store = Path(absolute(place, Path.cwd()))
    again = run_again(receipt, store, {"cluster.address": "local", **own})
    compared, differing = compare(receipt, again), differences(receipt, {what: again.all_of(what) for what in here})
    tolerance = limit if limit is not None else TOLERANCE if differing else 0.0
    done, verdict = judged(compared, tolerance)
    tree = {
        "run": receipt.name,
        "reproduced": done,
        "verdict": verdict,
        "apart_deg": compared.apart,
        "tolerance_deg": tolerance,
        "differences": differing,
        "parts": [vars(part) for part in compared.parts],
    }
    write_json(store / "reproduced.json", tree)
    tell(json.dumps(tree) if args.json else f"{compared.text()}\n\n{verdict}")
    return 0 if done else EXIT_FAILED


def degrees(text: str) -> float:
    """Raises SpecError for what is no number of degrees."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    check(0 <= value <= 180, f"tolerance={text} is no number of degrees between 0 and 180")
    return value


def differences(receipt: Receipt, here: Mapping[str, Sequence[str]]) -> list[str]:
    """What is not here as it was there, a sentence each."""
    found = []
    for what, ours in here.items():
        theirs = receipt.all_of(what)
        others, instead = [one for one in theirs if one not in ours], [one for one in ours if one not in theirs]
        if not theirs:
            found.append(f"{what}: the receipt does not say")
        elif others or (what == "processors" and instead):
            had = ", ".join(others or theirs)
            found.append(f"{what}: the run had {had}; here {', '.join(instead) or 'none of them'}")
    return found


def judged(compared: Comparison, tolerance: float) -> tuple[bool, str]:
    """Whether the run is reproduced, and the sentence."""
    if compared.same:
        return True, "reproduced: every byte and every figure is the same"
    apart = f"the table's MAE lies up to {compared.apart:.3f} degrees apart"
    if tolerance and compared.apart <= tolerance:
        return True, f"reproduced within the tolerance of {tolerance:g} degrees: {apart}"
    return False, f"not reproduced: {apart}" + (f", more than {tolerance:g}" if tolerance else "")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
