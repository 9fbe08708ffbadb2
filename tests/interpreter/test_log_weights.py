"""The update kernel, interpreted on the CPU, equals its definition."""

import pytest
import torch
from fastvae_kernels.log_weights import update_log_weights

import fastvae
from fastvae import ops, reference


def log_weights(num_samples: int, num_points: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_samples + num_points)
    return (torch.randn(num_samples, num_points, generator=generator) * 3 - 90).to(dtype)


def assert_same_state(ours: torch.Tensor, want: torch.Tensor) -> None:
    assert torch.equal(ours[[0, 6, 7]], want[[0, 6, 7]])  # counts are exact
    torch.testing.assert_close(ours, want, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("num_samples", "num_points"), [(1, 1), (70, 33), (1500, 1), (7, 5), (33, 64)])
def test_equals_the_definition(num_samples: int, num_points: int, dtype: torch.dtype) -> None:
    state = reference.update_log_weights(reference.empty_log_weights(num_points), log_weights(5, num_points))
    log_w = log_weights(num_samples, num_points, dtype)
    assert_same_state(update_log_weights(state, log_w), reference.update_log_weights(state, log_w))


def test_zero_bad_and_distant_weights() -> None:
    log_w = log_weights(40, 8)
    log_w[:, 0] = -torch.inf
    log_w[:33, 1] = -torch.inf  # the first tile of a point holds zero weights only
    log_w[3, 2], log_w[4, 3] = torch.nan, torch.inf
    log_w[:, 4] = torch.linspace(-1e6, 0, 40)
    log_w[:, 5] = torch.nan
    log_w[:, 6] = 1e4
    state = reference.empty_log_weights(8)
    once, want = update_log_weights(state, log_w), reference.update_log_weights(state, log_w)
    assert not once.isnan().any()
    assert_same_state(once, want)
    assert_same_state(update_log_weights(once, log_w), reference.update_log_weights(want, log_w))


def test_strided_input_and_no_samples() -> None:
    state = reference.empty_log_weights(6)
    log_w = log_weights(6, 20).t()
    assert_same_state(update_log_weights(state, log_w), reference.update_log_weights(state, log_w))
    assert torch.equal(update_log_weights(state, log_w[:0]), state)
    assert update_log_weights(state[:, :0].contiguous(), log_w[:, :0]).shape == (8, 0)


def test_the_operator_reaches_the_kernel() -> None:
    state, log_w = reference.empty_log_weights(3), log_weights(50, 3)
    with fastvae.backend("triton"):
        assert_same_state(ops.update_log_weights(state, log_w), reference.update_log_weights(state, log_w))
        with pytest.raises(RuntimeError, match="float64"):
            ops.update_log_weights(state, log_w.double())
