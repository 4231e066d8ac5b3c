"""What a user calls a model -> its files on this machine.

    shipped, shipped/teacher                                         the networks that come with the package
    student.onnx, a folder with an ONNX file or a saved network      as it lies there
    champion, candidate                                              an alias of the registered model
    3                                                                its version
    models:/head-pose@champion, models:/head-pose/3                  the same, as MLflow spells it
    0123456789abcdef0123456789abcdef                                 an MLflow run: of the publish stage, or a whole run

MLflow is imported only if no file has this name.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpe_core.errors import SpecError, check, only_near
from hpe_core.shipped import SHIPPED, model_path
from hpe_core.spec.network import MEANING, WEIGHTS
from workflows.tracking.registry import SCHEME, downloaded


@contextmanager
def model_files(model: str, uri: str, registered: str) -> Iterator[Path]:
    """What `HeadPosePredictor.load` takes; a download is removed in the end. Raises SpecError that names the model."""
    path = model_path(model)
    if os.path.exists(path):  # which also answers of names that no disk takes
        yield loadable(path)
        return
    if path.suffix in (".onnx", ".safetensors") or ("/" in model and not model.startswith(SCHEME)):
        raise SpecError(f"model={model}: there is no such file{similar(path)}")
    with tempfile.TemporaryDirectory(prefix="hpe-model-") as folder:
        try:
            found = downloaded(model, uri, registered, Path(folder))
        except SpecError as error:
            raise SpecError(f"{error}{only_near(model, [SHIPPED])}") from None
        yield loadable(found)


def similar(path: Path) -> str:
    """A closing half-sentence that names the file or folder beside a missing one with the most similar name, or ''."""
    try:
        return only_near(path.name, os.listdir(path.parent))
    except OSError:
        return ""


def loadable(path: Path) -> Path:
    """A file as it is; of a folder the ONNX file, else the folder of a saved network. Raises SpecError."""
    if path.is_file():
        check(path.suffix in (".onnx", ".safetensors"), f"{path} is no model: .onnx or .safetensors is needed")
        ours = path.suffix == ".onnx" or path.name == WEIGHTS  # else the one beside it would be taken
        check(ours, f"{path} is no saved network: those lie in a folder each, as {WEIGHTS} beside {MEANING}")
        return path.parent if path.suffix == ".safetensors" else path
    found = sorted(path.glob("*.onnx"))
    named = [file for file in found if file.name == "student.onnx"] or found
    check(len(named) <= 1, f"{path} holds several models: {', '.join(file.name for file in named)}; name one")
    if named:
        return named[0]
    check((path / WEIGHTS).is_file(), f"{path} holds no model: neither an .onnx file nor {WEIGHTS}")
    return path
