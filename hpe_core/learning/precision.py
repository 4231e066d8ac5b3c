"""Who decides how many digits a float32 product has on a GPU.

TF32 keeps 10 bits of each factor. That is enough to learn from, and too little for angles that two programs must agree
on to 1e-3 degrees, or for a table that says the same on every machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within, float32 products and convolutions keep all their digits (no TF32); afterwards all is as it was."""
    # torch has two families of switches and refuses to read one after the other was set: this is the older one.
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
