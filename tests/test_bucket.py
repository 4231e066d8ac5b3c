"""The whole road with its store in a bucket: what another machine finds there. On S3 it is a cluster's job that runs it
(`test_cluster.py`), in Google's storage, on demand, a command."""

from pathlib import Path

import pytest

from hpe_core.system.remote import Remote
from tests.road import call, environment, sound, words
from workflows.full_pipeline import STAGES

FEWER = ("teachers.byobnet=null", "search.trials=1")  # what lies in a bucket does not depend on how many there are


def finished_everywhere(store: str, printed: str, cache: Path) -> None:
    """A run's files are there, and another machine prints its table, scores it in another way and finds it sound."""
    index = Remote(store).index()
    for stage in STAGES:
        assert sum(name.startswith(f"{stage.name}/") and name.endswith("manifest.json") for name in index) == 1
    assert {"mlflow.db"} <= set(index) and "lease.json" not in index
    assert f"report   {store}/publish/" in printed and any(name.endswith("report/report.html") for name in index)
    other = environment(HPE_CACHE=str(cache))
    again = call(words("run", store, *FEWER), other)
    assert again.code == 0 and [line.split()[1] for line in again.err.splitlines()] == ["skip"] * len(STAGES)
    assert "distilled" in again.out and again.out.split("report")[0] in printed, "the same table"
    assert not list(cache.rglob("*.parquet"))
    scored = sound(call(words("run", store, *FEWER, "evaluate.offset_step=1", "cluster.address=local"), other))
    assert [line.split()[1] for line in scored.err.splitlines()[: len(STAGES)]] == ["skip"] * 5 + ["run"] * 2
    assert call(words("verify", store, *FEWER), other).code == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_the_pipeline_runs_into_a_bucket_and_is_finished_everywhere(bucket, tmp_path):
    """The command that a user types; then the same command on another machine."""
    store = f"{bucket}/runs"
    first = sound(call(words("run", store, *FEWER, "cluster.address=local"), environment()))
    finished_everywhere(store, first.out, tmp_path / "other")
