"""From the key `reader` to the class that reads the format: whatever `readers/` holds is known by its `name`."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping

from hpe_core.datasets import readers as folder
from hpe_core.datasets.base import Reader, Source
from hpe_core.datasets.boxes import Boxed
from hpe_core.datasets.converted import Converted
from hpe_core.datasets.detected import Detected
from hpe_core.detection.detector import drawn_by
from hpe_core.detection.fit import TO_LANDMARKS, DetectorFit
from hpe_core.errors import SpecError, check, one_of
from hpe_core.spec.data import ConventionSpec, DatasetSpec, DataSpec

# Keys that decide, with the faces, which of them are tested on.
DIVIDED = ("seed", "val", "test", "val_groups", "test_groups", "count", "group_by", "heads_per_person")


@functools.cache
def readers() -> Mapping[str, type[Reader]]:
    """Every reader by name. Imports all of `readers/`, so what takes long to import stands in their functions."""
    names = [f"{folder.__name__}.{found.name}" for found in pkgutil.iter_modules(folder.__path__)]
    modules = [importlib.import_module(name) for name in names]
    classes = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    return {kind.name: kind for kind in classes if issubclass(kind, Reader) and "name" in vars(kind)}


def reader_of(spec: DatasetSpec, key: str = "") -> Reader:
    """The dataset's reader, after its keys were checked; opens no file. `key` names the dataset. Raises SpecError."""
    prefix = f"{key}." if key else ""
    check(spec.reader in readers(), f"{prefix}reader is {one_of(spec.reader, readers())}")
    reader = readers()[spec.reader](spec)
    try:
        reader.check()
    except SpecError as error:
        raise SpecError(f"{key}: {error}" if key else str(error)) from None
    return reader


def check_datasets(data: DataSpec) -> None:
    """What only the readers know: every dataset can be read, and no test set holds training faces. Raises SpecError."""
    sources = {name: reader_of(spec, f"data.datasets.{name}") for name, spec in data.datasets.items()}
    for name in dict.fromkeys(data.test):
        for other in dict.fromkeys(data.train):
            tested, trained = sources[name], sources[other]
            if name != other and (tested.shares_faces(trained.spec) or trained.shares_faces(tested.spec)):
                said = f"data.test names '{name}', which holds the same faces as '{other}' in data.train"
                check(name in data.train, said)
                keys = ", ".join(DIVIDED[:-1])
                check(_division(tested) == _division(trained), f"{said}: both need one root and the same {keys}")


def _division(source: Reader) -> list[object]:
    """What decides who is tested on: of two datasets that agree in it none trains on people that the other tests on."""
    return [source.name, source.origin(source.spec), *(getattr(source.spec, key) for key in DIVIDED)]


def open_source(spec: DatasetSpec) -> Source:
    """The dataset's reader, behind the convention and boxes that its keys ask for. Opens no file. Raises SpecError."""
    source: Source = reader_of(spec)
    if spec.convention != ConventionSpec():
        source = Converted(source)
    if spec.boxes:
        return Boxed(source)
    return source if spec.detector is None else Detected(source)


def reader_modules(names: Iterable[str]) -> tuple[str, ...]:
    """The modules of the named readers: where the code stands that no import statement leads to."""
    return tuple(sorted({readers()[name].__module__ for name in names}))


def boxes_of(spec: DatasetSpec) -> str | None:
    """Who draws a dataset's boxes, as protocols have it; None for a file or manifest: anybody's. Raises SpecError."""
    if spec.detector is not None:
        return drawn_by(spec.detector)
    return None if spec.boxes else reader_of(spec).own_boxes


def fit_to(spec: DatasetSpec) -> DetectorFit | None:
    """What makes YuNet's boxes like those of a dataset; None if nobody has measured it."""
    if spec.detector is not None:
        return TO_LANDMARKS if spec.detector.fit else DetectorFit()
    return None if spec.boxes else reader_of(spec).detector_fit
