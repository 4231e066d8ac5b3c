"""Which processor this is, and one set of kernels on all of them where that costs nothing.

Libraries choose their code by what the processor can do, and sums in another order give other last bits. Of drawing and
cutting faces only OpenBLAS, behind NumPy's products, differs between processors of the last ten years
(`python -m tests.processors`), so it is told one kind: rendered heads, and so the shards, are the same bytes.
"""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
KIND = "OPENBLAS_CORETYPE"
HASWELL = "Haswell"  # AVX2: OpenBLAS takes the same kernels on AMD's Zen


def _first_core() -> dict[str, str]:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        with CPUINFO.open() as file:
            text = file.read(8192)  # of hundreds of cores Linux writes for a while
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def same_kernels() -> None:
    """Before NumPy is imported. A variable that is set already keeps its value."""
    if platform.machine() in ("x86_64", "AMD64") and "avx2" in _first_core().get("flags", "").split():
        os.environ.setdefault(KIND, HASWELL)


def cpu_name() -> str:
    """The processor's name where the system tells it, else ''."""
    return _first_core().get("model name", "")


def processor() -> str:
    """The model, such as `AMD EPYC 9B14`, with its family's and model's number, since names repeat themselves."""
    core = _first_core()
    name = core.get("model name") or platform.processor() or platform.machine()
    numbers = [core[key] for key in ("cpu family", "model", "stepping") if key in core]
    return f"{name} ({'-'.join(numbers)})" if numbers else name
