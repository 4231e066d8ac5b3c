"""The costs of single operations. What their module may import: tests/test_architecture.py."""

from hpe_core.augment.operations.apply import OPERATIONS
from workflows.bench.operations import operation_costs


def test_every_operation_has_a_cost():
    costs = operation_costs("cpu", 32, 4)
    assert costs.keys() == OPERATIONS.keys() and all(0 < cost < 1e6 for cost in costs.values())
