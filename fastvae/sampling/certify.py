"""Certify: one parallel pass proves a whole batch of samples exact, whatever schedule drew it."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """The outcome of checking x == g(u, f(x)) at every value that was drawn.

    A causal model has exactly one x with x = g(u, f(x)), so equality everywhere proves the batch exact.

    Attributes:
        values: how many values were checked.
        mismatches: values that differ from g(u, f(x)).
        unexplained: mismatches that rounding of the parameters does not explain: these are errors.
        tolerance: the rounding allowed, as a probability.
        margin: of the values that agree, the least distance of u from the cdf, where the next value begins; for greedy
            draws, and low temperatures where this is less, by how much the parameters (logits) would have to move. None
            for a Gaussian and for callables.
        close: values for which that distance is at most ``tolerance``, so that rounding could decide them; None as
            above.
        difference: the largest |x - g(u, f(x))| of a Gaussian or a callable; None otherwise.
    """

    values: int
    mismatches: int
    unexplained: int
    tolerance: float
    margin: float | None = None
    close: int | None = None
    difference: float | None = None

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
            _merged(min, self.margin, other.margin),
            _merged(operator.add, self.close, other.close),
            _merged(max, self.difference, other.difference),
        )

    def __str__(self) -> str:
        if self.mismatches == 0:
            verdict = f"exact: all {self.values} values equal g(u, f(x))"
        else:
            verdict = (
                f"{'exact up to rounding' if self.ok else 'NOT EXACT'}: of {self.values} values {self.mismatches} "
                f"differ from g(u, f(x)), {self.unexplained} of them by more than {self.tolerance:g} in u"
            )
        if self.margin is not None:
            verdict += f"\n  margin: {self.margin:.1e} at least; {self.close} within {self.tolerance:g}"
        if self.difference is not None:
            verdict += f"\n  largest difference: {self.difference:.1e}"
        return verdict


def _merged(how: Callable[[Any, Any], Any], first: Any, second: Any) -> Any:
    return second if first is None else first if second is None else how(first, second)


class CertificateError(RuntimeError):
    """Samples are not those of the model; ``certificate`` has the numbers."""

    def __init__(self, certificate: Certificate) -> None:
        super().__init__(
            f"{certificate}\nThe model computed other parameters in one parallel pass than step by step: "
            "does its forward depend on something else than its parameters, buffers, image and condition?"
        )
        self.certificate = certificate


def certify(
    model: nn.Module,
    draw: Draw,
    images: Tensor,
    uniform: Tensor,
    condition: Tensor | None = None,
    known: Tensor | None = None,
) -> Certificate:
    """Check samples against one parallel pass of the model.

    Args:
        model: the causal network.
        draw: the likelihood, at the temperature of the samples.
        images: (B, C, H, W) samples.
        uniform: (B, C, H, W) numbers in (0, 1) that they were drawn with.
        condition: (B, ...) or None.
        known: (B, C, H, W), True for values that were given and are not to be checked.
    """
    eps = tolerance(images)
    with torch.no_grad():
        params = model(images) if condition is None else model(images, condition)
        params = split_params(params, draw.groups(images.shape[1]))
        uniform, x = uniform.movedim(1, -1), images.movedim(1, -1)
        wanted = draw.again(draw.prepare(uniform), params, x)
        checked = torch.ones_like(x, dtype=torch.bool) if known is None else ~known.movedim(1, -1)
        slack = draw.slack(uniform, x, params)
        if slack is None:
            return _of_numbers(draw, uniform, x, params, wanted, checked, eps)
        wrong = (x != wanted)[checked]
        slack = slack[checked]
    right = slack[~wrong]
    return Certificate(
        values=slack.numel(),
        mismatches=int(wrong.sum()),
        unexplained=int((slack[wrong] < -eps).sum()),
        tolerance=eps,
        margin=float(right.min()) if right.numel() else None,
        close=int((slack.abs() <= eps).sum()),
    )


def _of_numbers(
    draw: Draw, uniform: Tensor, x: Tensor, params: Tensor, wanted: Tensor, checked: Tensor, eps: float
) -> Certificate:
    """Values that may be continuous: they carry the parameters' rounding."""
    # g is monotone in u: what lies between g(u - eps) and g(u + eps) is within rounding of the cdf
    shifted = ((uniform + shift).clamp(_SMALLEST, 1.0 - 2.0**-24) for shift in (-eps, eps))
    bounds = [draw.again(draw.prepare(u), params, x) for u in shifted]
    low, high = torch.minimum(*bounds), torch.maximum(*bounds)
    difference = (x - wanted).abs()
    mismatch = checked & ~(difference <= eps * (1.0 + wanted.abs()))
    unexplained = mismatch & ~((x >= low) & (x <= high))
    return Certificate(
        values=int(checked.sum()),
        mismatches=int(mismatch.sum()),
        unexplained=int(unexplained.sum()),
        tolerance=eps,
        difference=float(difference[checked].max()) if checked.any() else None,
    )


def tolerance(images: Tensor) -> float:
    """Rounding of probabilities to be expected from a network on these images."""
    if images.is_cuda and images.dtype == torch.float32:
        return _TOLERANCE_TF32
    return _TOLERANCE.get(images.dtype, _TOLERANCE_HALF)


def split_params(params: Tensor, groups: int) -> Tensor:
    """(N, groups * P, H, W) -> (N, H, W, groups, P), a group for each channel or one for all of them."""
    return params.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2)
