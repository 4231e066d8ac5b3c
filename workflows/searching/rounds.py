"""Rounds of trials inside Ray Tune: who is tried next, and which trial is stopped early.

Tune's own ASHA compares a trial with those that happen to be as far, and its searchers propose from those that happen
to have ended: two runs of one configuration differ. Here both look at the rounds before, which have ended.
"""

import math
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from hpe_core.learning.metrics import deciding
from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.files import read_json
from workflows.engine.told import trial_file
from workflows.searching.proposals import NUMBER, Changes, Proposer

LOOKS, PAUSE_S = 20, 0.5  # at a file that has to come
KEPT = 4  # one trial in so many goes on past a rung, and the next rung is so many times as far


class Rounds(Searcher):
    """Gives Tune the next round as soon as every trial of the last one has ended, and never more than `at_once`.

    Tune itself counts what trials hold, and not the CPUs beside them that tasks of Ray Data need to read for them.
    """

    def __init__(self, spec: PipelineSpec, at_once: float = math.inf) -> None:
        super().__init__(metric="val_error", mode="min")
        self.at_once = at_once
        self.spec = to_dict(spec)  # a plain tree: Tune pickles searchers
        self.size, self.trials = spec.search.concurrent, spec.search.tried
        self.begin([], {})

    def begin(self, names: list[str], errors: dict[str, float | None]) -> None:
        """Propose again what trials of these names, in order, were given."""
        self.names, self.errors = names, errors  # Tune's names of the trials; the smallest error of those that ended
        self.proposer, self.proposed = Proposer(build(PipelineSpec, self.spec)), list[Changes]()
        while len(self.proposed) < len(names):
            self.propose()

    def propose(self) -> None:
        last = self.names[: len(self.proposed)][-self.size :]
        self.proposed += self.proposer.round([self.errors[name] for name in last])

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration; None while a round is not over, or there is no room."""
        if len(self.names) == self.trials:
            return Searcher.FINISHED
        if len(self.names) - len(self.errors) >= self.at_once:
            return None
        if len(self.names) == len(self.proposed):
            if not all(name in self.errors for name in self.names):
                return None
            self.propose()
        self.names.append(trial_id)
        return {NUMBER: len(self.names), **self.proposed[len(self.names) - 1]}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        failed = error or not result or "best_val_error" not in result
        self.errors[trial_id] = None if failed else float((result or {})["best_val_error"])

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps((self.names, self.errors)))

    def restore(self, checkpoint_path: str) -> None:
        self.begin(*pickle.loads(Path(checkpoint_path).read_bytes()))


class AgainstEarlierRounds(FIFOScheduler):
    """Successive halving: at each rung a trial goes on if its error is among the best quarter of earlier rounds.

    The first round is never stopped. What the others reached lies in the search's folder, so a restored run knows it.
    Tune keeps this object as it is, and says where that folder is now: a store may have been moved.
    """

    def __init__(self, spec: PipelineSpec) -> None:
        super().__init__()
        self.size = spec.search.concurrent
        self.rungs = rungs(spec.search.grace_epochs, spec.search.epochs)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's word for what becomes of the trial."""
        number, epoch = int(trial.config[NUMBER]), int(result["training_iteration"])
        if epoch not in self.rungs:
            return str(self.CONTINUE)
        known = {int(one.config[NUMBER]): one.last_result for one in tune_controller.get_trials()}
        before = range(1, (number - 1) // self.size * self.size + 1)
        folder = Path(tune_controller.experiment_path).parent
        earlier = [history(folder, other, epochs_of(known.get(other))) for other in before]
        lost = loses(float(result["val_error"]), [other[epoch] for other in earlier if epoch in other])
        return str(self.STOP if lost else self.CONTINUE)


def rungs(grace_epochs: int, epochs: int) -> list[int]:
    """The epochs after which a trial can be stopped."""
    found, epoch = [], grace_epochs
    while epoch < epochs:
        found.append(epoch)
        epoch *= KEPT
    return found


def loses(error: float, others: list[float]) -> bool:
    """Whether an error is not among the best quarter of others'."""
    known = [other for other in others if math.isfinite(other)]
    return bool(known) and not error <= np.percentile(known, 100 / KEPT)


def epochs_of(result: dict[str, Any] | None) -> int:
    return int((result or {}).get("training_iteration", 0))


def history(folder: Path, number: int, epochs: int) -> dict[int, float]:
    """The validation error of a trial after each of its epochs, as it lies in the store.

    Raises OSError unless so many epochs are there in time: on some filesystems a file that another node has written is
    seen a little later.
    """
    for _ in range(LOOKS):
        told = read_json(trial_file(folder, number)) or {"history": []}
        if len(told["history"]) >= epochs:
            return {int(row["epoch"]): float(row[deciding(row, "val/")]) for row in told["history"]}
        time.sleep(PAUSE_S)
    raise OSError(f"{trial_file(folder, number)} holds {len(told['history'])} of {epochs} epochs")
