"""What the doctor finds: an error must be mended before a run, a warning is worth knowing."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One sentence about a dataset or a part of the machine."""

    level: Literal["error", "warning"]
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.about}: {self.text}"
