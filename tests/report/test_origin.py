"""Where a model comes from: the facts that its pages say."""

import dataclasses
from pathlib import Path

from hpe_core.system.files import write_json
from tests.report.fakes import pipeline_spec
from tests.reporting import LocalReporter
from workflows.engine.results import Results
from workflows.engine.stage import StageRun
from workflows.report.origin import origin


def test_a_model_is_as_old_as_the_last_stage_that_it_was_made_by(tmp_path):
    """And names each stage by its folder, and the processors that its student learnt on."""
    ended = {"shards": "2030-01-02", "student": "2030-03-01", "evaluate": "2030-02-03"}
    inputs = {name: tmp_path / name / f"hash-of-{name}" for name in ended}
    for name, date in ended.items():
        made_by = {"made_by": {"processors": ["one", "two"] if name == "student" else ["three"]}}
        write_json(inputs[name] / "manifest.json", {"finished": f"{date} 00:00:00", **made_by})
    spec, folder = pipeline_spec(tmp_path), Path("publish", "hash-of-publish")
    stage = StageRun("publish", "publish/1", spec, folder, inputs, {}, Results({}), LocalReporter(print))
    facts = origin(stage)
    assert facts["finished"] == "2030-03-01 00:00:00" and facts["processor"] == "one, two"
    assert {name: facts[f"stage {name}"] for name in [*ended, "publish"]} == {
        name: f"hash-of-{name}" for name in [*ended, "publish"]
    }
    assert origin(dataclasses.replace(stage, spec=dataclasses.replace(spec, name="other")))["configuration"] == "other"
