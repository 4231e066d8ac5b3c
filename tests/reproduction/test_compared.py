"""Whatever differs between two runs is named, and what only a clock said is not."""

from typing import Any

import pytest

from tests.reproduction.receipts import receipt
from workflows.reproduce import differences, judged
from workflows.reproduction.compared import compare

Made = dict[str, dict[str, Any]]


def shard(made: Made) -> None:
    made["shards"]["result"]["splits"]["heads.train"]["shards"][0]["sha256"] = "b"


def lost_shard(made: Made) -> None:
    made["shards"]["result"]["splits"]["heads.train"]["shards"].append({"path": "p", "rows": 1, "sha256": "c"})


def lost_split(made: Made) -> None:
    made["shards"]["result"]["splits"].clear()


def faces(made: Made) -> None:
    made["shards"]["result"]["splits"]["heads.train"]["quarantined"] = {"bomb": 1}


def weights(made: Made) -> None:
    made["student"]["files"]["student-net/model.safetensors"]["sha256"] = "x"


def no_teacher(made: Made) -> None:
    del made["teachers"]["files"]["teachers-net/model.safetensors"]


def labels(made: Made) -> None:
    made["labels"]["result"]["fingerprint"] = "m"


def trial(made: Made) -> None:
    made["search"]["result"]["trials"][0]["best_val_error"] = 7.1


def yaw(made: Made) -> None:
    made["evaluate"]["result"]["rows"][0]["scores"]["yaw"] = 6.1


def no_row(made: Made) -> None:
    made["evaluate"]["result"]["rows"].clear()


@pytest.mark.parametrize(
    ("change", "stage", "said"),
    [
        (shard, "shards", "1 of 1 shards have other bytes"),
        (lost_shard, "shards", "of 1 shards have other bytes"),
        (lost_split, "shards", "1 of 1 shards have other bytes"),
        (faces, "shards", "8 of 9 kept"),
        (weights, "student", "other weights"),
        (no_teacher, "teachers", "other weights"),
        (labels, "labels", "other bytes"),
        (trial, "search", ""),
        (yaw, "table", "MAE 6.50, now 6.50"),
        (no_row, "table", "now inf"),
    ],
)
def test_each_difference_is_named_by_its_stage(change, stage, said):
    found = compare(receipt(), receipt(change))
    assert not found.same
    (part, *more) = [part for part in found.parts if not part.same]
    assert part.stage == stage and (said in part.told or said in more[0].told)
    assert found.data_differ == (change in (faces, lost_split))
    assert not compare(receipt(change), receipt()).same, "and the other way round"


def test_the_same_run_is_the_same_and_times_count_for_nothing():
    def later(made: Made) -> None:
        made["search"]["result"]["trials"][0] |= {"seconds": 99.0, "latency_ms": 9.0}
        made["evaluate"]["result"]["rows"][0]["latency_ms"] = 9.0

    found = compare(receipt(), receipt(later))
    assert found.same and found.apart == 0
    assert {part.stage for part in found.parts} == {"shards", "teachers", "labels", "search", "student", "table"}
    assert judged(found, 0.0) == (True, "reproduced: every byte and every figure is the same")


@pytest.mark.parametrize(("mae", "tolerance", "done"), [(6.7, 0.0, False), (6.7, 0.15, False), (6.3, 0.25, True)])
def test_a_tolerance_is_for_the_tables_mae(mae, tolerance, done):
    def other(made: Made) -> None:
        made["evaluate"]["result"]["rows"][0]["scores"]["mae"] = mae
        weights(made)

    found = compare(receipt(), receipt(other))
    assert found.apart == pytest.approx(0.2) and judged(found, tolerance)[0] is done
    assert "0.200 degrees" in judged(found, tolerance)[1]


def no_number(made: Made) -> None:
    made["evaluate"]["result"]["rows"][0]["scores"]["mae"] = float("nan")


@pytest.mark.parametrize("change", [no_row, no_number])
def test_a_row_or_number_that_is_missing_is_within_no_tolerance(change):
    assert not judged(compare(receipt(), receipt(change)), 180.0)[0]


def test_processors_and_versions_that_differ_are_named():
    here = {"python": ["3.11.9"], "processors": ["B 2000"], "packages": ["torch==2.16.0"]}
    assert differences(receipt(), {what: receipt().all_of(what) for what in here}) == []
    found = differences(receipt(), here)
    assert found == [
        "processors: the run had A 1000; here B 2000",
        "packages: the run had torch==2.15.0; here torch==2.16.0",
    ]
    unsaid = receipt(lambda made: [manifest.pop("made_by") for manifest in made.values()])
    assert len(differences(unsaid, here)) == 3, "an older run does not say, so nothing is known to be the same"
