"""Where the model came from: what each stage cost, versions, data, seeds and the configuration."""

import re
from collections.abc import Iterator

from hpe_core.spec.pipeline import PipelineSpec
from workflows.engine.config import as_yaml
from workflows.report.material import Material, Section
from workflows.report.page import Entry, Line, decimals, line
from workflows.storage.manifest import finished


def provenance(material: Material) -> Iterator[Section]:
    spec, splits = material.spec, material.results.shards.splits
    facts = {name: value for name, value in material.origin.items() if not name.startswith("stage ")}
    facts |= {f"data {name}": split.fingerprint[:12] for name, split in splits.items()}
    facts |= {"seeds": seeds(spec)}
    values = {
        "stages": stage_lines(material),
        "facts": [line(name, Entry(value, code=True)) for name, value in facts.items()],
        "configuration": re.sub(r"://(?!/)\S*@", "://", as_yaml(spec)),  # a tracking server's password stays out
    }
    yield Section("Provenance", "provenance", values)


def stage_lines(material: Material) -> list[Line]:
    """Seconds, CPU hours, GPU hours and hash of each stage, and of all together."""
    lines, whole = [], dict.fromkeys(("seconds", "cpus", "gpus"), 0.0)
    for name, folder in material.stage.inputs.items():
        manifest = finished(folder)
        hours = {key: count * manifest["seconds"] / 3600 for key, count in manifest.get("machinery", {}).items()}
        for key, value in {**hours, "seconds": manifest["seconds"]}.items():
            whole[key] += value
        spent = (decimals(hours.get(key), 3) for key in ("cpus", "gpus"))
        lines.append(line(name, f"{manifest['seconds']:,.0f} s", *spent, Entry(folder.name, code=True)))
    spent = (decimals(whole[key], 3) for key in ("cpus", "gpus"))
    return [*lines, line("together", f"{whole['seconds']:,.0f} s", *spent, "")]


def seeds(spec: PipelineSpec) -> str:
    """Every seed that the run drew from, datasets first."""
    used = [(name, spec.data.datasets[name].seed) for name in dict.fromkeys([*spec.data.train, *spec.data.test])]
    used += [(name, teacher.seed) for name, teacher in spec.teachers.items()]
    return ", ".join(f"{name} {seed}" for name, seed in [*used, ("student", spec.student.seed)])
