"""Certify: one parallel pass proves a whole batch of samples exact, whatever schedule drew it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .draw import Draw

__all__ = ["Certificate", "CertificateError", "certify", "split_params", "tolerance"]

_SMALLEST = 1e-30  # uniform numbers stay inside (0, 1)
# Of probabilities, from the rounding of the network's parameters. On CUDA a convolution of float32 may run in TF32.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_TF32, _TOLERANCE_HALF = 5e-3, 2e-2


@dataclass(frozen=True)
class Certificate:
    """The outcome of checking x == g(u, f(x)) at every value.

    A causal model has exactly one x with x = g(u, f(x)), so equality everywhere proves the batch exact.

    Attributes:
        values: how many values were checked.
        mismatches: values that differ from g(u, f(x)).
        unexplained: mismatches that a change of u by ``tolerance`` does not explain: these are errors.
        tolerance: the rounding allowed, as a probability.
    """

    values: int
    mismatches: int
    unexplained: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every value is explained."""
        return self.unexplained == 0

    def __add__(self, other: "Certificate") -> "Certificate":
        """The certificate of two batches together."""
        return Certificate(
            self.values + other.values,
            self.mismatches + other.mismatches,
            self.unexplained + other.unexplained,
            max(self.tolerance, other.tolerance),
        )

    def __str__(self) -> str:
        if self.mismatches == 0:
            return f"exact: all {self.values} values equal g(u, f(x))"
        verdict = "exact up to rounding" if self.ok else "NOT EXACT"
        return (
            f"{verdict}: of {self.values} values {self.mismatches} differ from g(u, f(x)), "
            f"{self.unexplained} of them by more than {self.tolerance:g} in u"
        )


class CertificateError(RuntimeError):
    """Samples are not those of the model; ``certificate`` has the numbers."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(
            f"{certificate}. The model computed other parameters in one parallel pass than step by step: "
            "does its forward depend on something else than its parameters, buffers, image and condition?"
        )
        self.certificate = certificate


def certify(
    model: nn.Module, draw: Draw, images: Tensor, uniform: Tensor, condition: Tensor | None = None
) -> Certificate:
    """Check samples against one parallel pass of the model.

    Args:
        model: the causal network.
        draw: the likelihood.
        images: (B, C, H, W) samples.
        uniform: (B, C, H, W) numbers in (0, 1) that they were drawn with.
        condition: (B, ...) or None.
    """
    with torch.no_grad():
        params = split_params(model(images) if condition is None else model(images, condition), images.shape[1])
        eps = tolerance(images)
        uniform = uniform.movedim(1, -1)
        x = images.movedim(1, -1)
        wanted = draw.sample(draw.prepare(uniform), params)
        # g is monotone in u: what lies between g(u - eps) and g(u + eps) is within rounding of the cdf
        bounds = [
            draw.sample(draw.prepare((uniform + shift).clamp(_SMALLEST, 1.0 - 2.0**-24)), params)
            for shift in (-eps, eps)
        ]
        low, high = torch.minimum(*bounds), torch.maximum(*bounds)
        close = (x - wanted).abs() <= eps * (1.0 + wanted.abs())  # continuous values carry the parameters' rounding
        mismatch = ~((x == wanted) | close)
        unexplained = mismatch & ~((x >= low) & (x <= high))
    return Certificate(x.numel(), int(mismatch.sum()), int(unexplained.sum()), eps)


def tolerance(images: Tensor) -> float:
    """Rounding of probabilities to be expected from a network on these images."""
    if images.is_cuda and images.dtype == torch.float32:
        return _TOLERANCE_TF32
    return _TOLERANCE.get(images.dtype, _TOLERANCE_HALF)


def split_params(params: Tensor, channels: int) -> Tensor:
    """(N, C * P, H, W) -> (N, H, W, C, P)."""
    return params.unflatten(1, (channels, -1)).permute(0, 3, 4, 1, 2)
