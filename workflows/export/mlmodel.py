"""The published folder as an MLflow model of two flavours: pyfunc (encoded pictures or paths in, degrees out) and onnx.

`mlflow.pyfunc.load_model("models:/head-pose@champion")` works where this project is not installed: the library's
source travels in `code/`. The example is a rendered head, so no person's picture is handed on.
"""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import hpe_core
from hpe_core.datasets.registry import open_source
from hpe_core.geometry.crop import encoded
from hpe_core.pyfunc import COLUMNS, CORNERS, ONNX_FILE, PATH, PICTURE
from hpe_core.spec.data import DatasetSpec
from hpe_core.system.packages import version_of

NEEDED = ("mlflow", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow")
NOT_NEEDED = ("render/person/anatomy.npz", "shipped/*/*")  # megabytes of the library that a model does not use


def begin_folder(folder: Path) -> None:
    """Make `folder` an MLflow model, anew; the ONNX file is written into it afterwards."""
    import mlflow.pyfunc
    from mlflow.models import Model

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it announces each check of the example
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was cut off; MLflow asks for an empty one
    model = Model()
    model.add_flavor("onnx", onnx_version=version_of("onnx"), data=ONNX_FILE, providers=["CPUExecutionProvider"])
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module="hpe_core.pyfunc",
        code_paths=[str(Path(hpe_core.__file__).parent)],
        mlflow_model=model,
        signature=signature(),
        input_example=example(),
        pip_requirements=[f"{name}=={version_of(name)}" for name in NEEDED],
    )
    for data in NOT_NEEDED:
        for file in (folder / "code" / "hpe_core").glob(data):
            if file.is_file():
                file.unlink()


def signature() -> Any:
    """Either picture column may be left out, and so may the box."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("binary", PICTURE, required=False), ColSpec("string", PATH, required=False)]
    inputs += [ColSpec("double", name, required=False) for name in CORNERS]
    return ModelSignature(Schema(inputs), Schema([ColSpec("double", name) for name in COLUMNS]))


def example() -> Any:
    """A table of one rendered head, as PNG, with its box."""
    import pyarrow

    heads = open_source(DatasetSpec("synthetic", count=1, image_px=96))
    head, image = heads.load(next(iter(heads.refs())))
    row = {PICTURE: encoded(image), **dataclasses.asdict(head.known_box())}
    return pyarrow.Table.from_pylist([row]).to_pandas()
