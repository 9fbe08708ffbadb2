"""What every test starts from."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """A test that fails once fails again: its random numbers do not depend on the tests before it."""
    torch.manual_seed(0)
