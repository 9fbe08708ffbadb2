"""The operators of the importance-weight state: equal to brute force, pure, compilable, clear about bad input."""

import math

import pytest
import torch

from fastvae import ops


def brute_force(log_w: torch.Tensor) -> torch.Tensor:
    """The state of the samples (K,), by the textbook formulas on Python numbers."""
    values = log_w.double().tolist()
    good = [l for l in values if not math.isnan(l) and l != math.inf]
    finite = [l for l in good if l != -math.inf]
    m = max(good, default=-math.inf)
    mean = sum(finite) / len(finite) if finite else 0.0
    return torch.tensor(
        [
            len(values),
            m,
            sum(math.exp(l - m) for l in finite),
            sum(math.exp(2 * (l - m)) for l in finite),
            mean,
            sum((l - mean) ** 2 for l in finite),
            len(good) - len(finite),
            len(values) - len(good),
        ],
        dtype=torch.float64,
    )


COLUMNS = {
    "ordinary": [-90.0, -92.5, -91.0, -89.5],
    "one": [3.0],
    "all zero": [-math.inf, -math.inf],
    "some zero": [-math.inf, -5.0, -6.0],
    "nan": [math.nan, -5.0, -6.0],
    "infinite": [math.inf, -5.0, -6.0],
    "only bad": [math.nan, math.inf],
    "gap of a million": [-1e6, 0.0, -3.0],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_update_equals_brute_force(name: str) -> None:
    log_w = torch.tensor(COLUMNS[name], dtype=torch.float64)
    state = ops.update_log_weights(ops.empty_log_weights(1), log_w[:, None])
    torch.testing.assert_close(state[:, 0], brute_force(log_w), rtol=1e-13, atol=0)


@pytest.mark.parametrize("first", COLUMNS)
@pytest.mark.parametrize("second", COLUMNS)
def test_merge_equals_brute_force_of_both(first: str, second: str) -> None:
    a, b = torch.tensor(COLUMNS[first]).double(), torch.tensor(COLUMNS[second]).double()
    states = [ops.update_log_weights(ops.empty_log_weights(1), part[:, None]) for part in (a, b)]
    want = brute_force(torch.cat([a, b]))
    for merged in (ops.merge_log_weights(*states), ops.update_log_weights(states[0], b[:, None])):
        torch.testing.assert_close(merged[:, 0], want, rtol=1e-12, atol=1e-300)
    assert torch.equal(ops.merge_log_weights(*states), ops.merge_log_weights(*states[::-1])) or first != second


def test_inputs_are_left_alone_and_no_samples_change_nothing() -> None:
    state = ops.update_log_weights(ops.empty_log_weights(3), torch.randn(4, 3))
    before, log_w = state.clone(), torch.randn(5, 3)
    kept = log_w.clone()
    ops.update_log_weights(state, log_w)
    assert torch.equal(state, before)
    assert torch.equal(log_w, kept)
    torch.testing.assert_close(ops.update_log_weights(state, log_w[:0]), state, rtol=1e-15, atol=0)
    assert ops.update_log_weights(ops.empty_log_weights(0), torch.randn(5, 0)).shape == (8, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_dtypes_are_widened_first(dtype: torch.dtype) -> None:
    log_w = torch.randn(100, 2).to(dtype)
    state = ops.update_log_weights(ops.empty_log_weights(2), log_w)
    want = ops.update_log_weights(ops.empty_log_weights(2), log_w.double())
    torch.testing.assert_close(state, want, rtol=1e-14, atol=0)


def test_is_a_well_formed_operator_that_compiles() -> None:
    state, log_w = ops.empty_log_weights(3), torch.randn(4, 3)
    torch.library.opcheck(torch.ops.fastvae.update_log_weights, (state, log_w))
    compiled = torch.compile(ops.update_log_weights, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(state, log_w), ops.update_log_weights(state, log_w))


STATE = ops.empty_log_weights(3)


@pytest.mark.parametrize(
    ("state", "log_w", "error", "says"),
    [
        (STATE.float(), torch.zeros(2, 3), TypeError, "state must be float64"),
        (STATE[:7], torch.zeros(2, 3), ValueError, r"state must have shape \(8, N\), got \(7, 3\)"),
        (STATE, torch.zeros(2, 3, dtype=torch.long), TypeError, "log_w must be floating point"),
        (STATE, torch.zeros(3, 2), ValueError, r"log_w must have shape \(K, 3\), got \(3, 2\)"),
        (STATE, torch.zeros(3), ValueError, r"got \(3,\)"),
        (STATE, torch.zeros(2, 3, device="meta"), ValueError, "device"),
    ],
)
def test_bad_input(state: torch.Tensor, log_w: torch.Tensor, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ops.update_log_weights(state, log_w)


def test_states_of_different_datapoints_do_not_merge() -> None:
    with pytest.raises(ValueError, match=r"\(8, 3\) on cpu and \(8, 4\)"):
        ops.merge_log_weights(STATE, ops.empty_log_weights(4))
    with pytest.raises(ValueError, match="num_points must not be negative, got -1"):
        ops.empty_log_weights(-1)
