"""Head-pose distillation: every command of the project under one name.

    hpe run -c demo                                        the whole pipeline, what is not finished of it
    hpe predict photo.jpg detector=fetch model=student.onnx
    hpe COMMAND --help                                     its keys, options and exit codes

Configurations are the project's own, by name, or files. In a checkout `python workflows/full_pipeline.py` is `hpe run`.
"""

import importlib
import sys
from collections.abc import Callable, Sequence

import hpe_core
from hpe_core.errors import SpecError, check, nearest

VERBS = {
    "run": "run what is not finished, from faces to a registered student",
    "plan": "say what would run, which key made it so, and what it costs",
    "verify": "hash every finished file",
    "sync": "bring MLflow up to the store",
    "shards": "one stage: cut every face once",
    "teachers": "one stage: networks that learn from hard labels",
    "labels": "one stage: the teachers' soft labels",
    "search": "one stage: find the student's settings",
    "student": "one stage: the student and its hard-label twin",
    "evaluate": "one stage: score everything on the test sets",
    "publish": "one stage: ONNX, model card, report, registry",
}
PROGRAMS = {
    "predict": "poses of the faces in pictures, videos and cameras",
    "doctor": "look whether datasets and machine are as a run needs them",
    "benchmark": "measure the parts of the pipeline",
    "compare-seeds": "the demo's table over several seeds",
    "survive": "kills what can die in a small run, and shows that nothing is lost",
    "reproduce": "a finished run once more, compared byte by byte and digit by digit",
}


def main(argv: Sequence[str] | None = None) -> int:
    """A command's modules are imported when it is called, so that --help answers at once."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        listed = [f"  {name:<14} {said}" for name, said in (VERBS | PROGRAMS).items()]
        print("\n".join(["usage: hpe COMMAND ...", "", (__doc__ or "").strip(), "", "commands:", *listed]))
        return 0
    if argv[0] == "--version":
        print(hpe_core.__version__)
        return 0
    guarded = importlib.import_module("workflows.engine.config").guarded
    return int(guarded(lambda: command(argv)()))


def command(argv: Sequence[str]) -> Callable[[], int]:
    """What the words call. Raises SpecError that names the nearest command."""
    name, words = argv[0], list(argv[1:])
    sys.argv = ["hpe" if name in VERBS else f"hpe {name}", *words]  # what its --help calls itself
    if name in VERBS:
        pipeline = importlib.import_module("workflows.full_pipeline")
        return lambda: int(pipeline.main(argv))
    if name in PROGRAMS:
        program = importlib.import_module(f"workflows.{name.replace('-', '_')}")
        return lambda: int(program.main(words))
    check(name.isidentifier() or "-" in name[1:], f"a command comes first, for example hpe run {' '.join(argv)}")
    raise SpecError(f"unknown command '{name}'{nearest(name, [*VERBS, *PROGRAMS])}")
