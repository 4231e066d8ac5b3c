"""One set of kernels: what a head looks like does not depend on what else the processor could do."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from hpe_core.system import processor
from tests.processors import NUMPY, OPENCV

DRAWN = (
    "import hpe_core, hashlib, numpy\n"
    "from hpe_core.render.scene import render_head\n"
    "print(hashlib.sha256(b''.join(render_head(7, i, size=64).image.tobytes() for i in range(12))).hexdigest())"
)


def drawn(**changes: str) -> str:
    env = {name: value for name, value in os.environ.items() if name != processor.KIND}
    done = subprocess.run([sys.executable, "-c", DRAWN], env={**env, **changes}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    "avx512f" not in processor._first_core().get("flags", ""), reason="a processor with AVX-512 is asked for"
)
def test_heads_are_the_same_bytes_without_avx512():
    """And are others where OpenBLAS may choose: the switch counts."""
    here = drawn()
    assert drawn(**NUMPY, **OPENCV) == here
    assert drawn(OPENBLAS_CORETYPE="Zen") == here
    assert drawn(OPENBLAS_CORETYPE="SkylakeX") != here


@pytest.mark.parametrize(
    ("machine", "flags", "chosen"),
    [("x86_64", "fpu avx2", "Haswell"), ("x86_64", "fpu avx", None), ("aarch64", "avx2", None)],
)
def test_the_kernels_are_only_those_that_the_processor_has(monkeypatch, tmp_path, machine, flags, chosen):
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name : A 1000\ncpu family : 6\nmodel : 7\nflags : {flags}\n\nmodel name : another\n")
    monkeypatch.setattr(processor, "CPUINFO", info)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv(processor.KIND, raising=False)
    processor.same_kernels()
    assert os.environ.get(processor.KIND) == chosen
    assert processor.processor() == "A 1000 (6-7)"
    monkeypatch.setenv(processor.KIND, "Zen")
    processor.same_kernels()
    assert os.environ[processor.KIND] == "Zen", "what somebody has chosen stays"
    monkeypatch.setattr(processor, "CPUINFO", Path("/nowhere"))
    assert processor.processor(), "elsewhere than on Linux, what Python knows"
