"""Three speed-ups measured on the spot, each against the code one would write without the library."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastvae
from fastvae.models import VAE, LatentVariableModel, PixelVAE
from fastvae.nn import MaskedConv2d
from fastvae.timing import interleaved

__all__ = ["evaluation", "masked_convolution", "per_image_loop", "sampling"]


def masked_convolution() -> dict[str, Any]:
    """Forward and backward of a 5x5 layer against the weight multiplied by its mask."""
    layer = MaskedConv2d(64, 64, 5, mask="B")
    mask = torch.ones_like(layer.weight)
    mask[:, :, 2, 3:], mask[:, :, 3:] = 0.0, 0.0
    x = torch.randn(16, 64, 28, 28, requires_grad=True)
    inputs = [x, *layer.parameters()]

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x).sum(), inputs)

    def masked_weight() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.conv2d(x, layer.weight * mask, layer.bias, padding=2).sum(), inputs)

    for got, want in zip(ours(), masked_weight(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    return _row("masked 5x5 convolution, forward + backward", "weight * mask", ours, masked_weight, rounds=7)


def evaluation(model: LatentVariableModel, x: Tensor, num_samples: int) -> dict[str, Any]:
    """log p(x) of a few images against a loop over images and chunks of 100 samples that encodes every time."""

    def ours() -> Tensor:
        return fastvae.log_likelihood(x, model, num_samples=num_samples, progress=False).log_prob

    def loop() -> Tensor:
        return per_image_loop(model, x, num_samples)

    name = f"log p(x), {len(x)} images, M = {num_samples}"
    return _row(name, "loop over images, 100 samples a time", ours, loop, rounds=5)


def per_image_loop(model: LatentVariableModel, x: Tensor, num_samples: int, chunk: int = 100) -> Tensor:
    """What public code does: each image repeated, encoded and decoded for every chunk of samples."""
    log_probs = []
    with torch.no_grad():
        for image in x:
            log_w = []
            for start in range(0, num_samples, chunk):
                repeated = image.expand(min(chunk, num_samples - start), *image.shape)
                q = model.proposal(repeated)
                z = q.rsample()
                log_w.append(model.likelihood(z).log_prob(repeated) + model.prior().log_prob(z) - q.log_prob(z))
            log_probs.append(torch.cat(log_w).logsumexp(0) - math.log(num_samples))
    return torch.stack(log_probs)


def sampling(model: VAE | PixelVAE, seed: int) -> dict[str, Any]:
    """Sixteen images against one full pass of the network for every pixel; the same images from the same noise."""
    sampler = fastvae.compile_sampler(model)
    torch.manual_seed(seed)
    z = model.prior().sample((16,))

    def ours() -> Tensor:
        return sampler(16, seed=seed, condition=z).samples

    def naive() -> Tensor:
        return sampler.naive(16, seed=seed, condition=z).samples

    return _row("16 images of the PixelVAE", "one network pass for every pixel", ours, naive, rounds=5)


def _row(what: str, against: str, ours: Any, baseline: Any, rounds: int) -> dict[str, Any]:
    measured = interleaved(ours, baseline, rounds=rounds, min_seconds=0.01)
    return {
        "what": what,
        "against": against,
        "ours": measured["candidate_s"],
        "baseline": measured["baseline_s"],
        "ratio": measured["ratio"],
        "quartiles": [measured["ratio_q1"], measured["ratio_q3"]],
    }
