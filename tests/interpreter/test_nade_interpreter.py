"""The NADE kernels, interpreted on the CPU, equal their definition."""

import pytest
import torch
from fastvae_kernels import nade as kernels

import fastvae
from fastvae import ops, reference


def inputs(batch: int, features: int, hidden: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((batch, features), 0.4))
    return x, [torch.randn(shape) for shape in ((features, hidden), (hidden,), (features, hidden), (features,))]


@pytest.mark.parametrize(("batch", "features", "hidden"), [(1, 1, 1), (3, 9, 5), (260, 3, 33), (17, 9, 64)])
def test_logits_gradients_and_samples_equal_the_loop(batch: int, features: int, hidden: int) -> None:
    x, parameters = inputs(batch, features, hidden)
    exact = [p.double().requires_grad_() for p in parameters]
    want = reference.nade_logits(x.double(), *exact)
    torch.testing.assert_close(kernels.nade_forward(x, *parameters).double(), want, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(want, exact[:3], grad.double(), materialize_grads=True)
    found = kernels.nade_backward(x, *parameters[:3], grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)
    noise = torch.rand_like(x)
    assert torch.equal(kernels.nade_sample(noise, *parameters), reference.nade_sample(noise, *parameters))


def test_several_tiles_and_shares_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernels, "backward_config", lambda rows, hidden: kernels.BackwardConfig(4, 16, num_shares=2, num_warps=4)
    )
    monkeypatch.setattr(kernels, "config", lambda rows, hidden: kernels.Config(4, 32, 4))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape, **_: torch.full(shape, float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: torch.full_like(x, float("nan")))
    x, parameters = inputs(19, 6, 21)
    exact = [p.double().requires_grad_() for p in parameters]
    want = reference.nade_logits(x.double(), *exact)
    grad = torch.randn_like(x)
    expected = torch.autograd.grad(want, exact[:3], grad.double())
    torch.testing.assert_close(kernels.nade_forward(x, *parameters).double(), want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(kernels.nade_backward(x, *parameters[:3], grad), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


def test_the_operators_reach_the_kernels() -> None:
    x, parameters = inputs(5, 4, 6)
    for parameter in parameters:
        parameter.requires_grad_()
    order = torch.tensor([2, 0, 3, 1])
    want = ops.nade_log_prob(x, *parameters, order)
    expected = torch.autograd.grad(want.sum(), parameters)
    noise = torch.rand_like(x)
    drawn = ops.nade_sample(noise, *parameters, order)
    with fastvae.backend("triton"):
        ours = ops.nade_log_prob(x, *parameters, order)
        found = torch.autograd.grad(ours.sum(), parameters)
        assert torch.equal(ops.nade_sample(noise, *parameters, order), drawn)
        with pytest.raises(RuntimeError, match="compute in float32, got float64"):
            ops.nade_log_prob(x, *[p.double() for p in parameters])
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
