"""Which operation gives other bits on another processor? Libraries choose their code by what the processor can do.

    python -m tests.processors          each step of a training on this processor, and as older ones would take it

Every line restricts libraries by their own variables, walks one batch of rendered heads from drawing to the first
step of a training, and names the first operation whose bytes differ from those of the unrestricted walk.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hpe_core  # noqa: F401  # before NumPy is imported

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2"}
ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
NUMPY = {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}
OPENCV = {"OPENCV_CPU_DISABLE": "AVX512-SKX", "OPENCV_IPP": "avx2"}
RESTRICTED: dict[str, Mapping[str, str]] = {
    "again": {},
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "NumPy without AVX-512": NUMPY,
    "OpenBLAS for AVX-512": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "OpenCV without AVX-512": OPENCV,
    "PyTorch's own kernels with AVX2": AVX2,
    "PyTorch's own kernels with neither": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with AVX2": ONEDNN,
    "MKL with AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "all with AVX2": {**AVX2, **ONEDNN, **NUMPY, **OPENCV, "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


def digest(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().numpy()
    return hashlib.sha256(value.tobytes()).hexdigest()[:16]


def walk() -> Iterator[tuple[str, str]]:
    """(operation, hash of what it gave), in order."""
    import numpy as np
    import torch

    from hpe_core.augment.augment import Augment
    from hpe_core.data.batch import FaceData
    from hpe_core.spec.network import NetSpec
    from hpe_core.spec.training import AugmentSpec, OptimSpec, TrainSpec
    from hpe_core.training.place import Place
    from hpe_core.training.step import begin
    from hpe_core.training.views import Views
    from tests.faces import CROP, head, windows, write_heads

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    yield "drawing a head (NumPy)", digest(np.concatenate([head(i).image.ravel() for i in range(24)]))
    yield "cutting it (OpenCV)", digest(windows(24))
    augment = AugmentSpec(flip=0.5, turn_deg=10, jitter_px=2, photometric="light")
    net = NetSpec(backbone="test_resnet", bin_widths=(3.0,), limit_deg=99)
    optim = OptimSpec(epochs=2, batch_size=24, lr=0.005, ema_decay=0.99)
    spec = TrainSpec(net=net, optim=optim, augment=augment, hard_loss="dldl")
    with tempfile.TemporaryDirectory() as folder:
        faces = FaceData(write_heads(Path(folder), 24))
        step = begin(spec, CROP, Place(torch.device("cpu")))
        views = Views(faces, Augment(augment, CROP.size, step.state.net.form), 24, 0, Place(torch.device("cpu")))
        batch = next(next(views.epochs(0, 1)))
    yield "augmentation (PyTorch)", digest(batch.images_BHWC)
    yield "soft targets of the angles", digest(batch.angles_B3)
    yield "first weights (random numbers)", digest(torch.cat([p.flatten() for p in step.state.net.parameters()]))
    seen: list[tuple[str, str]] = []
    for name, module in step.state.net.named_modules():
        if not list(module.children()):
            told = f"forward: {type(module).__name__} {name}"
            module.register_forward_hook(
                lambda _, inside, outside, told=told: (
                    seen.append((told, digest(outside))) if isinstance(outside, torch.Tensor) else None
                )
            )
    losses = step(batch)
    yield from seen
    yield "loss", digest(losses["loss"])
    for name, weight in list(step.state.net.named_parameters())[::-1]:
        yield f"weights after one step: {name}", digest(weight)


def run(changes: Mapping[str, str]) -> list[tuple[str, str]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    done = subprocess.run([sys.executable, "-m", "tests.processors", "walk"], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [(name, found) for name, found in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
    if sys.argv[1:] == ["walk"]:
        print(json.dumps(list(walk())))
        return
    whole = run({})
    print(f"{len(whole)} operations")
    for name, changes in RESTRICTED.items():
        other = run(changes)
        differ = [theirs[0] for theirs, ours in zip(other, whole, strict=True) if theirs != ours]
        print(f"| {name} | {len(differ)} | {differ[0] if differ else 'the same bits'} |", flush=True)


if __name__ == "__main__":
    main()
