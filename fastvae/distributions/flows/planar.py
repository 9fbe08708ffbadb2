"""``PlanarTransform``: a step along one direction, as far as one projection says."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .transform import VectorTransform

__all__ = ["PlanarTransform"]

_HALVINGS = 60  # from an interval of 2 |w v| to the last bit of float64
_MARGIN = 1e-4  # which rounding does not reach


class PlanarTransform(VectorTransform):
    r""":math:`z = u + \hat v \tanh(w^\top u + b)`, with :math:`w^\top \hat v = \mathrm{softplus}(w^\top v) - 1`.

    Rezende and Mohamed (2015), equations 10 to 12 and appendix A.1: the component of v along w is changed so that
    :math:`w^\top \hat v > -1`, which makes the map a bijection. To data O(d). To noise one number is solved for by
    bisection, O(d + 60), with exact gradients.

    Args:
        v: (..., d), the direction.
        w: (..., d), the projection.
        b: (...), its offset. The parameters broadcast with what is transformed: one for each datapoint, from an
            encoder, or one for all.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> transform = PlanarTransform(torch.randn(8, 2), torch.randn(8, 2), torch.randn(8))
        >>> z, log_det = transform.to_data(torch.randn(5, 8, 2))
        >>> z.shape, log_det.shape
        (torch.Size([5, 8, 2]), torch.Size([5, 8]))
    """

    def __init__(self, v: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        if v.ndim == 0 or v.shape != w.shape or b.shape != v.shape[:-1]:
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in (v, w, b))
            raise ValueError(f"v, w and b must have shapes (..., d), (..., d) and (...), got {shapes}")
        along = (w * v).sum(-1)
        wanted = F.softplus(along) - (1.0 - _MARGIN)
        length = w.square().sum(-1).clamp(min=torch.finfo(w.dtype).tiny)
        self.v = v + ((wanted - along) / length).unsqueeze(-1) * w
        self.slope = (w * self.v).sum(-1)  # as it is after rounding
        self.w, self.b = w, b

    def to_data(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh((noise * self.w).sum(-1) + self.b)
        return noise + h.unsqueeze(-1) * self.v, torch.log1p(self.slope * (1.0 - h.square()))

    def to_noise(self, data: Tensor) -> tuple[Tensor, Tensor]:
        # w z = a + slope tanh(a + b) for a = w u: increasing in a
        projection = (data * self.w).sum(-1)
        with torch.no_grad():
            low, high = projection - self.slope.abs(), projection + self.slope.abs()
            for _ in range(_HALVINGS):
                middle = 0.5 * (low + high)
                too_high = middle + self.slope * torch.tanh(middle + self.b) > projection
                low, high = torch.where(too_high, low, middle), torch.where(too_high, middle, high)
            a = 0.5 * (low + high)
            steepness = 1.0 + self.slope * (1.0 - torch.tanh(a + self.b).square())
        # one Newton step, which brings the gradients of the solution
        a = a - (a + self.slope * torch.tanh(a + self.b) - projection) / steepness
        h = torch.tanh(a + self.b)
        return data - h.unsqueeze(-1) * self.v, -torch.log1p(self.slope * (1.0 - h.square()))
