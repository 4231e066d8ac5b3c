"""The keys of `predict`: their defaults, their meaning, and how key=value words become them."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpe_core.datasets.decoding.pictures import MAX_PIXELS
from hpe_core.errors import check
from hpe_core.shipped import SHIPPED
from hpe_core.spec.serde import build, to_dict
from hpe_core.system.remote import Remote, is_remote
from workflows.engine.commandline import typed_overrides
from workflows.engine.config import flatten, lasting_folder

WHOLE = "whole"
MOST_PIXELS = 178_000_000  # above that Pillow refuses


def key(default: Any, said: str) -> Any:
    """A field of `PredictSpec` with the line that --help has about it."""
    return field(default=default, metadata={"said": said})


@dataclass(frozen=True)
class RegistrySpec:
    uri: str = ""  # empty: SQLite in the store


@dataclass(frozen=True)
class PredictSpec:
    """Every key of the command."""

    model: str = key(SHIPPED, "the package's own; or a file or folder, or champion or a version or run in MLflow")
    detector: str = key("", "YuNet's ONNX file; fetch: download it once, then it is found without this key")
    boxes: str = key("", "instead of a detector: FILE.json, or whole: every picture is one face")
    fit: bool = key(True, "detected boxes become such as the network was taught with; false: as they are")
    box_scale: float = key(1.0, "boxes grow by this, too, before the network sees them")
    min_score: float = key(0.6, "of the detector's faces, 0 to 1")
    side_px: int = key(640, "the longer side of a picture is scaled down to this for the detector")
    tiles: bool = key(True, "the detector looks at tiles of a picture of more than 6 times side_px; false: never")
    turns: int = key(1, "4: it also looks at the picture turned by quarters, for faces on their side or upside down")
    min_confidence: float = key(0.0, "faces below are dropped: the chance that no angle is off by 10 degrees")
    max_pixels: int = key(MAX_PIXELS, "of a picture; a larger JPEG is decoded at a half, a quarter or an eighth")
    smooth: float = key(0.0, "seconds over which poses of a person in a video or camera are smoothed; 0: not at all")
    out: str = key("poses", "folder of drawn copies and table")
    draw: bool = key(True, "false: the table alone")
    frames: int = key(0, "at most so many pictures or frames; 0: all")
    model_name: str = key("head-pose", "the registered model")
    store: str = key("runs", "of the run whose registry is asked")
    mlflow: RegistrySpec = key(RegistrySpec(), "MLflow's address; empty: SQLite in the store")

    def __post_init__(self) -> None:
        check(bool(self.model), "model names nothing")
        check(bool(self.out), "out names no folder")
        check(not (self.detector and self.boxes), "detector and boxes both say where the faces are; drop one of them")
        check(0.2 <= self.box_scale <= 5, f"box_scale must lie in 0.2 ... 5, got {self.box_scale}")
        check(0 <= self.min_confidence < 1, f"min_confidence must be at least 0 and below 1, got {self.min_confidence}")
        check(self.turns in (1, 4), f"turns must be 1 or 4, got {self.turns}")
        check(1 <= self.max_pixels <= MOST_PIXELS, f"max_pixels must lie in 1 ... {MOST_PIXELS}, got {self.max_pixels}")
        check(0 <= self.smooth <= 10, f"smooth must lie in 0 ... 10 seconds, got {self.smooth}")
        check(self.frames >= 0, f"frames must not be negative, got {self.frames}")

    @property
    def fits(self) -> bool:
        """Whether boxes are a detector's, and to be fitted."""
        return self.fit and not self.boxes

    @property
    def tracking(self) -> str:
        """MLflow's address, found as the pipeline finds it."""
        store = lasting_folder(Path.cwd()) / os.path.expanduser(self.store)
        if is_remote(self.store):
            store = Remote(self.store).folder
        return self.mlflow.uri or f"sqlite:///{store / 'mlflow.db'}"


def spec_of(words: Sequence[str]) -> PredictSpec:
    """key=value words -> the keys. Raises SpecError that names the key."""
    return build(PredictSpec, typed_overrides(PredictSpec, words))


def key_lines() -> str:
    """Every key with its default and what it means."""
    lines = ["keys, and what they are where nothing is said:"]
    for one in dataclasses.fields(PredictSpec):
        for name, value in flatten({one.name: to_dict(one.default)}).items():
            shown = json.dumps(value) if isinstance(value, bool) else value
            lines.append(f"  {f'{name}={shown}':<22}{one.metadata['said']}")
    return "\n".join(lines)
