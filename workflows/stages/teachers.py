"""Stage "teachers": several networks learn from hard labels at the same time (EHPNet eqs. 1-3, offsets eq. 4)."""

from typing import Any

from hpe_core.spec.pipeline import PipelineSpec
from hpe_core.spec.serde import to_dict
from workflows.engine.results import TeachersResult
from workflows.engine.stage import StageRun
from workflows.training.jobs import batching, job_for, weights
from workflows.training.networks import train_all


def depends(spec: PipelineSpec) -> dict[str, Any]:
    """The teachers' keys, the weights that they start from, and what decides their batches."""
    files = weights({f"teachers.{name}": teacher for name, teacher in spec.teachers.items()}, spec.data.crop)
    return {"teachers": to_dict(spec.teachers), "weights": files, **batching(spec, "teachers")}


def run(stage: StageRun) -> TeachersResult:
    """Train every teacher."""
    return TeachersResult(train_all([job_for(stage, name, spec) for name, spec in stage.spec.teachers.items()], stage))
