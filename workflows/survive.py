"""Does a run survive on this cluster? Kills what can die, by lot, and compares with a run that nobody disturbed.

    python workflows/survive.py                                   three nodes on this machine, the small configuration
    python workflows/survive.py seed=7 only=worker,inside,shards  other moments and victims; some drills alone
    python workflows/survive.py cluster.address=10.0.0.1:6379 store=/shared/runs      your own cluster
    python workflows/survive.py cluster.address=auto allow=nodes  and its nodes, which somebody must start again

On a cluster that is not ours only processes of these runs are killed: workers, actors and drivers. A node is left alone
without `allow=nodes`; the head's and the driver's are left alone always. Written is below STORE/survive, which every
node must see, and the receipt into MLflow; no disk is filled, no package installed, no server of yours harmed.

Compared are bytes of shards, labels and weights, the search's trials and the table. At the end there is a receipt, as
JSON and as a page, in STORE/survive and in MLflow: what was done, what came back after how long, what was lost.
"""

import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpe_core.errors import check, nearest, say
from hpe_core.system.files import read_json
from hpe_core.system.remote import is_remote
from workflows.engine.cluster.connection import made_by, running_address
from workflows.engine.commandline import EXIT_STOPPED, parted
from workflows.engine.config import EXIT_BAD_INPUT, EXIT_FAILED, arguments, guarded, load, tell
from workflows.storage.lock import holding
from workflows.survival.campaign import NAMES, campaign
from workflows.survival.ground import Ground
from workflows.survival.nodes import NODES, joined
from workflows.survival.told import HTML, JSON, Receipt, machine, show_in_mlflow, write_receipt

CONFIG = "survive"
OWN = ("seed", "only", "allow")
PLACES = ("store", "cluster.address", "mlflow.uri")  # of which every drill has its own
OWN_KEYS = f"own keys: seed=0 allow=nodes only=NAME,... of {', '.join(NAMES)}"
CODES = {0: "nothing was lost", EXIT_FAILED: "something was, or no run was possible", EXIT_BAD_INPUT: "bad input"}


def main(argv: Sequence[str]) -> int:
    args = arguments(argv, __doc__ or "", ("run",), OWN_KEYS, CODES, default=CONFIG)
    own, words = parted(args.overrides, OWN)
    seed, chosen, nodes_allowed = check_own(own)
    spec = load(args.config, words)
    check(not is_remote(spec.store), f"store={spec.store}: drills harm files, so it is a folder that all nodes share")
    home, began_ms = spec.folder / "survive", int(1000 * time.time())
    home.mkdir(parents=True, exist_ok=True)
    address = {"local": "", "auto": running_address() or ""}.get(spec.cluster.address, spec.cluster.address)
    say(touched(address, nodes_allowed, home))
    dice = random.Random(seed)
    try:
        with holding(home), joined(address, dice, nodes_allowed=nodes_allowed) as cluster:
            with Ground(args.config, parted(words, PLACES)[1], home, cluster.address, dice) as ground:
                calm, faults = campaign(ground, cluster, chosen)
            receipt = Receipt(seed, cluster.told, calm, tuple(faults), machine(*cluster.size, made_by()))
    except KeyboardInterrupt:
        say("survive: stopped; nothing of it runs any more, and the same command begins anew")
        return EXIT_STOPPED
    write_receipt(receipt, home)
    if spec.mlflow.uri != "none":
        say(show_in_mlflow(receipt, home, spec, began_ms))
    tell(json.dumps(read_json(home / JSON)) if args.json else f"{receipt.text()}\nreceipt  {home / HTML}")
    return EXIT_FAILED if receipt.count("failed") else 0


def check_own(own: Mapping[str, str]) -> tuple[int, list[str], bool]:
    """(seed, drills in order, whether nodes may be killed). Raises SpecError that names the nearest word."""
    seed, allow = own.get("seed", "0"), own.get("allow", "")
    check(seed.isdecimal(), f"seed={seed} is no whole number")
    check(allow in ("", "nodes"), f"allow={allow}: only nodes can be allowed")
    chosen = [name for name in own.get("only", "").split(",") if name]
    for name in chosen:
        check(name in NAMES, f"only: there is no drill '{name}'{nearest(name, NAMES)}")
    return int(seed), chosen or NAMES, allow == "nodes"


def touched(address: str, nodes_allowed: bool, home: Path) -> str:
    """What the campaign may touch, said before it does."""
    if not address:
        return f"survive: {NODES} nodes of our own on this machine, which are killed and stopped; writes below {home}"
    nodes = "and nodes, neither the head nor the driver's" if nodes_allowed else "and no node"
    return f"survive: on {address} kills workers, actors and drivers of its own runs, {nodes}; writes below {home}"


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
