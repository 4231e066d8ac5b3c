"""What the doctor finds: an error must be mended before a run, a warning is worth knowing."""

from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Finding:
    """One sentence about a dataset or a part of the machine."""

    level: Literal["error", "warning"]
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.about}: {self.text}"


class Look(NamedTuple):
    """One part of the machine: a line of what is there, and what was found."""

    part: str
    said: str
    findings: tuple[Finding, ...] = ()


def error(part: str, text: str) -> tuple[Finding, ...]:
    return (Finding("error", part, text),)


def warning(part: str, text: str) -> tuple[Finding, ...]:
    return (Finding("warning", part, text),)
