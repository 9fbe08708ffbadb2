"""What tests of several commands share."""

from typing import Any

import pytest
import torch

from fastvae import figures


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The images that were put into pictures."""
    images: list[torch.Tensor] = []
    grid = figures.image_grid

    def spy(batch: torch.Tensor, **options: Any) -> Any:
        images.append(batch)
        return grid(batch, **options)

    monkeypatch.setattr(figures, "image_grid", spy)
    return images
