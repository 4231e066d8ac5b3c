"""Angles that two programs must agree on are computed with all digits of float32, and only they are."""

import pytest
import torch

from hpe_core.learning.precision import exact_float32


def switches() -> tuple[str, bool, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("convolutions", [False, True])
def test_within_there_is_no_tf32_and_afterwards_all_is_as_it_was(before, convolutions):
    kept = switches()
    try:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
        outside = switches()
        with pytest.raises(RuntimeError), exact_float32():
            assert switches() == ("highest", False, False)
            raise RuntimeError
        assert switches() == outside
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[2]
