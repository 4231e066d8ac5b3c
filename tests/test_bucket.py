"""The whole road with its store in a bucket: S3 in the second tier, Google's storage on demand."""

import pytest

from hpe_core.system.remote import Remote
from tests.road import call, environment, sound, words
from workflows.full_pipeline import STAGES


@pytest.mark.ray
@pytest.mark.longer
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bucket", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
def test_the_pipeline_runs_into_a_bucket_and_is_finished_everywhere(bucket, tmp_path):
    """The command that a user types, with its store in a bucket; then the same command on another machine.

    One teacher and one trial: what lies in a bucket does not depend on how many there are.
    """
    store = f"{bucket}/runs"
    fewer = ("teachers.byobnet=null", "search.trials=1")
    first = sound(call(words("run", store, *fewer, "cluster.address=local"), environment()))
    index = Remote(store).index()
    for stage in STAGES:
        assert sum(name.startswith(f"{stage.name}/") and name.endswith("manifest.json") for name in index) == 1
    assert {"mlflow.db"} <= set(index) and "lease.json" not in index
    assert f"report   {store}/publish/" in first.out and any(name.endswith("report/report.html") for name in index)
    other = environment(HPE_CACHE=str(tmp_path / "other"))
    again = call(words("run", store, *fewer), other)
    assert again.code == 0 and [line.split()[1] for line in again.err.splitlines()] == ["skip"] * len(STAGES)
    assert again.out.split("report")[0] == first.out.split("report")[0], "the same table"
    assert not list((tmp_path / "other").rglob("*.parquet"))
    scored = sound(call(words("run", store, *fewer, "evaluate.offset_step=1", "cluster.address=local"), other))
    assert [line.split()[1] for line in scored.err.splitlines()[: len(STAGES)]] == ["skip"] * 5 + ["run"] * 2
    assert call(words("verify", store, *fewer), other).code == 0
