"""The costs of single operations, measured where only torch, numpy and hpe_core.augment are."""

import subprocess
import sys

from hpe_core.augment.operations.apply import OPERATIONS
from workflows.bench.operations import operation_costs


def test_every_operation_has_a_cost():
    costs = operation_costs("cpu", 32, 4)
    assert costs.keys() == OPERATIONS.keys() and all(0 < cost < 1e6 for cost in costs.values())


def test_it_loads_neither_ray_nor_albumentations():
    heavy = "ray mlflow omegaconf pydantic albumentations"
    code = f"import sys, workflows.bench.operations; sys.exit(any(m in sys.modules for m in {heavy.split()}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
