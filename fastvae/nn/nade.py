"""``NADE``: the neural autoregressive distribution estimator of binary data, in any order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.ops.nade import nade_log_prob, nade_logits, nade_sample
from fastvae.ops.random import uniform

from .made import check_order

__all__ = ["NADE"]


class NADE(nn.Module):
    r"""Binary data, each value given the ones before it, :math:`\sigma(b_i + V_i \sigma(c + \sum_{j<i} x_j W_j))`.

    One layer of hidden units whose pre-activation is carried along, O(D H) for log-probability, gradient and sample.
    Larochelle and Murray: "The neural autoregressive distribution estimator" (2011). See
    :func:`fastvae.ops.nade_logits`.

    Args:
        features: D.
        hidden_features: H.
        order: a permutation of 0..D-1, the dimensions in the order in which they are generated; by default as they
            are. Rows of the weights belong to dimensions whatever the order is.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        x (..., D) of zeros and ones to logits (..., D).

    Raises:
        ValueError: for sizes that are not positive, or an order that is no permutation.

    Example:
        >>> nade = NADE(6, 16, order=[5, 4, 3, 2, 1, 0])
        >>> x = nade.sample(3, seed=0)
        >>> x.shape, nade.log_prob(x).shape
        (torch.Size([3, 6]), torch.Size([3]))
    """

    order: Tensor

    def __init__(
        self,
        features: int,
        hidden_features: int,
        *,
        order: Sequence[int] | Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("hidden_features", hidden_features)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        self.features, self.hidden_features = features, hidden_features
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(features, hidden_features, **made))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden_features, **made))
        self.output_weight = nn.Parameter(torch.empty(features, hidden_features, **made))
        self.output_bias = nn.Parameter(torch.zeros(features, **made))
        order = check_order(order, features).to(self.weight.device)
        self.is_ordered = torch.equal(order.cpu(), torch.arange(features))
        self.register_buffer("order", order, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within one over the square root of what they add up, zero biases."""
        nn.init.uniform_(self.weight, -(self.features**-0.5), self.features**-0.5)
        nn.init.uniform_(self.output_weight, -(self.hidden_features**-0.5), self.hidden_features**-0.5)
        nn.init.zeros_(self.hidden_bias)
        nn.init.zeros_(self.output_bias)

    def forward(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        return nade_logits(x, *self._arguments(order))

    def log_prob(self, x: Tensor, order: Tensor | None = None) -> Tensor:
        """Nats of each row; ``x`` (..., D) must be zeros and ones, which is not read back for a check here.

        ``order`` (D,) int64 instead of the net's own: the same weights serve any.
        """
        return nade_log_prob(x, *self._arguments(order))

    def sample(self, num_samples: int, *, seed: int = 0, first_id: int = 0, order: Tensor | None = None) -> Tensor:
        """Draw values (B, D) from noise addressed by (seed, first_id + b, dimension).

        Row b is the same whatever batch it is drawn in (but for a value whose number meets its probability within
        rounding). For noise of your own: :func:`fastvae.ops.nade_sample`.

        Args:
            num_samples: B.
            seed: an integer in [0, 2^64).
            first_id: the number of the first row.
            order: (D,) int64 instead of the net's own.
        """
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        ids = torch.arange(first_id, first_id + num_samples, device=self.weight.device)
        noise = uniform(seed, ids, ids.new_zeros(1), self.features, dtype=dtype)[:, 0]
        return nade_sample(noise, *self._arguments(order))

    def _arguments(self, order: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        if order is None and not self.is_ordered:
            order = self.order
        return self.weight, self.hidden_bias, self.output_weight, self.output_bias, order

    def extra_repr(self) -> str:
        return f"{self.features}, {self.hidden_features}" + ("" if self.is_ordered else ", in an order of its own")
