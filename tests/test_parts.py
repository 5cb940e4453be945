"""What an operation of a training step multiplies and moves."""

import pytest
import torch

from benchmarks import parts


def measured(operation):
    """Totals of one operation on vectors of 100 float32 numbers, or on 10 x 10 matrices."""
    a, b = torch.ones(100), torch.ones(100)
    with parts.Meter() as meter:
        operation(a, b)
    return meter.totals


@pytest.mark.parametrize(
    ("operation", "numbers"),
    [
        (lambda a, b: a.view(10, 10).T.detach(), 0),
        (lambda a, b: a + b, 300),
        (lambda a, b: a.add_(b), 300),
        (lambda a, b: a.copy_(b), 200),
        (lambda a, b: a.fill_(1.0), 100),
        (lambda a, b: a.clone(), 200),
        (lambda a, b: torch.cat([a, b]), 400),
    ],
)
def test_bytes_are_those_that_are_read_and_written(operation, numbers):
    assert sum(total["bytes"] for total in measured(operation).values()) == 4 * numbers


def test_a_product_counts_its_operations():
    total = measured(lambda a, b: a.view(10, 10) @ b.view(10, 10))["linear layers"]
    assert total["operations"] == 2 * 10**3
    assert total["seconds"] > 0
