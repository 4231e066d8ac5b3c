"""Memory that is kept is not asked for again."""

import subprocess
import sys

import pytest

from workflows.engine.config import REPO

LOOP = """
import resource, sys
import numpy as np
from hpe_core.system.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
for _ in range(5):
    [np.ones(1 << 20, np.uint8) for _ in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    [np.ones(1 << 20, np.uint8) for _ in range(8)]
print(kept, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 160)
"""


def faults(word: str) -> tuple[bool, float]:
    """(whether the C library is glibc and was told, page faults for each megabyte that is taken and given back)."""
    command = [sys.executable, "-c", LOOP, word]
    kept, count = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.split()
    return kept == "True", float(count)


def test_a_loop_meets_its_own_memory_again():
    kept, count = faults("keep")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert count < 10
    assert faults("leave")[1] > 10 * max(1.0, count)
