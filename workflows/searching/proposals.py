"""What the search tries next: Optuna's proposals, a round of `search.concurrent` trials at a time.

A round is proposed when all earlier ones have ended, so it follows from the seed and from their errors alone: not from
how many trials the machine runs at once, which of them was quicker, or whether the run was cut off in between.
"""

import ast
import math
from collections.abc import Sequence
from typing import Any

from hpe_core.spec.pipeline import PipelineSpec, SearchSpace, own_value

NUMBER = "number"  # beside the changes in a trial's configuration: trials are counted from 1
Changes = dict[str, Any]  # dotted keys of the student -> values, in the form in which Optuna and Tune carry them


class Proposer:
    """Optuna's TPE over the search space, seeded. The configured student itself is the first trial."""

    def __init__(self, spec: PipelineSpec) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.trials, self.size = spec.search.tried, spec.search.concurrent
        startup = max(4, spec.search.trials // 3)
        # "Liar": trials of one round stay away from each other.
        sampler = optuna.samplers.TPESampler(seed=spec.student.seed, n_startup_trials=startup, constant_liar=True)
        self.study = optuna.create_study(sampler=sampler, direction="minimize")
        if start := first_point(spec):
            self.study.enqueue_trial(start)
        whole = {key: isinstance(own_value(spec.student, key), int) for key in spec.search.space}
        self.space = {key: distribution(entry, whole[key]) for key, entry in spec.search.space.items()}
        self.asked: list[Any] = []

    def round(self, errors: Sequence[float | None]) -> list[Changes]:
        """The next round, after the errors of the last one's trials in their order; None is a trial that failed."""
        from optuna.trial import TrialState

        last = self.asked[-len(errors) :] if errors else []
        for trial, error in zip(last, errors, strict=True):
            failed = error is None or not math.isfinite(error)
            self.study.tell(trial, None if failed else error, state=TrialState.FAIL if failed else None)
        new = [self.study.ask(self.space) for _ in range(min(self.size, self.trials - len(self.asked)))]
        self.asked += new
        return [dict(trial.params) for trial in new]


def distribution(entry: SearchSpace, whole: bool = False) -> Any:
    """One searched key as an Optuna distribution; choices that are lists travel as text."""
    import optuna

    if entry.choice:
        return optuna.distributions.CategoricalDistribution([encode_choice(value) for value in entry.choice])
    assert entry.low is not None and entry.high is not None
    if whole:
        return optuna.distributions.IntDistribution(int(entry.low), int(entry.high), log=entry.log)
    return optuna.distributions.FloatDistribution(entry.low, entry.high, log=entry.log)


def encode_choice(value: Any) -> Any:
    return repr(value) if isinstance(value, list | tuple | dict) else value


def decode_changes(config: Changes) -> Changes:
    lists = {key: ast.literal_eval(v) for key, v in config.items() if isinstance(v, str) and v[:1] in "[({"}
    return config | lists


def first_point(spec: PipelineSpec) -> Changes:
    """The configured student's own values, where each lies inside the search space."""
    point = {}
    for key, entry in spec.search.space.items():
        value = own_value(spec.student, key)
        inside = value in entry.choice if entry.choice else (entry.low or 0) <= value <= (entry.high or 0)
        if not inside:
            return {}
        point[key] = encode_choice(next(c for c in entry.choice if c == value) if entry.choice else value)
    return point
