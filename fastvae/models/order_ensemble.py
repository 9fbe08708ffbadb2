"""One network in several generation orders: the ensemble of their joint distributions."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastvae import ops
from fastvae.ops.orders import OrderName, check_order

from .parts import check_positive

__all__ = ["OrderEnsemble", "make_orders"]


class OrderEnsemble(nn.Module):
    r""":math:`p(x) = \frac1n \sum_o p_o(x)` over n orders, all with the same weights.

    Uria, Murray, Larochelle: "A deep and tractable density estimator" (2014), section 4, for NADE; Jain, Abbeel,
    Pathak: "Locally masked convolution for autoregressive models" (2020), section 4.3, for PixelCNN. The average is of
    the joint probabilities, so it is a distribution itself. Training maximises :meth:`bound`.

    Subclasses define :meth:`log_prob_in_order` and :meth:`sample_in_order`.

    Args:
        order, num_orders: see :func:`make_orders`.
        size: (H, W).
    """

    orders: Tensor

    def __init__(self, order: Any, num_orders: int, size: tuple[int, int]) -> None:
        super().__init__()
        orders = make_orders(order, num_orders, size)
        self.order = order if isinstance(order, str) else [each.tolist() for each in orders]
        self.register_buffer("orders", torch.stack(orders), persistent=False)  # (n, H * W, 2)

    @property
    def num_orders(self) -> int:
        """n."""
        return len(self.orders)

    def log_prob_in_order(self, x: Tensor, index: int) -> Tensor:
        """log p(x) in nats in order number ``index``: ``x`` (N, C, H, W) -> (N,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define log_prob_in_order")

    def sample_in_order(self, num_samples: int, index: int, seed: int, first_id: int = 0) -> Tensor:
        """Images (num_samples, C, H, W) drawn in order number ``index``."""
        raise NotImplementedError(f"{type(self).__name__} does not define sample_in_order")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of the ensemble in nats, exact: ``x`` (N, C, H, W) -> (N,)."""
        each = [self.log_prob_in_order(x, index) for index in range(self.num_orders)]
        return each[0] if len(each) == 1 else torch.stack(each).logsumexp(0) - math.log(len(each))

    def bound(self, x: Tensor) -> Tensor:
        """What training maximises, (N,) nats: in training mode log p(x) in one order, drawn for the batch from torch's
        generator, whose mean is at most that of the ensemble; in evaluation mode the ensemble itself."""
        if not self.training or self.num_orders == 1:
            return self.log_prob(x)
        return self.log_prob_in_order(x, int(torch.randint(self.num_orders, ())))

    @torch.no_grad()
    def sample(self, num_samples: int, *, seed: int = 0) -> Tensor:
        """Images (num_samples, C, H, W) from the ensemble: an order for each, then pixel after pixel in that order."""
        check_positive(num_samples=num_samples)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(self.num_orders, (num_samples,), generator=generator)
        counts = torch.bincount(chosen, minlength=self.num_orders).tolist()
        parts, first = [], 0
        for index, count in enumerate(counts):
            if count:
                parts.append(self.sample_in_order(count, index, seed, first))
            first += count
        # in the order in which the orders were drawn: no position says anything about its order
        return torch.cat(parts)[chosen.argsort(stable=True).argsort()]


def make_orders(order: Any, num_orders: int, size: tuple[int, int]) -> list[Tensor]:
    """Generation orders (H * W, 2), int64, on the CPU.

    Args:
        order: ``"raster"``, ``"s_curve"`` or ``"hilbert"``, and then the first ``num_orders`` of its eight flips and
            transposes; ``"random"``, and then so many permutations, with seeds 0, 1, ...; or an order (H * W, 2) of
            rows and columns, or a sequence of such orders, all of which are used.
        num_orders: how many; for orders that are given their number, or 1.
        size: (H, W).

    Raises:
        ValueError: for a name or a number that does not exist, or an order that is none.

    Example:
        >>> [order[0].tolist() for order in make_orders("raster", 2, (2, 3))]
        [[0, 0], [0, 2]]
    """
    check_positive(num_orders=num_orders)
    if not isinstance(order, str):
        given = [order] if torch.as_tensor(order[0]).ndim == 1 else order
        orders = [check_order(each, size) for each in given]
        if num_orders not in (1, len(orders)):
            raise ValueError(f"num_orders must be 1 or the number of orders, {len(orders)}, got {num_orders}")
        return orders
    if order not in get_args(OrderName):
        raise ValueError(f"order must be one of {get_args(OrderName)} or arrays, got {order!r}")
    if order == "random":
        return [ops.generation_order("random", size, seed=seed) for seed in range(num_orders)]
    found: Sequence[Tensor] = ops.orientations(order, size)  # type: ignore[arg-type]  # it is one of the names
    if num_orders > len(found):
        raise ValueError(f"num_orders must be at most {len(found)} for {order!r}, got {num_orders}; 'random' has more")
    return list(found[:num_orders])
