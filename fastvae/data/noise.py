"""From grey levels to binary images, and from integers to continuous values."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .dataset import Data, random_uniform, sample_binary

__all__ = ["Binarization", "binarize", "dequantize", "frozen_noise"]

Binarization = Literal["none", "threshold", "sample"]
_STREAMS = {"valid": 1, "test": 2}  # separate uses of one seed


def binarize(data: Data, how: Binarization = "none", seed: int = 0) -> Data:
    """Binary images, by a named protocol.

    Args:
        data: grey images.
        how: ``"none"`` leaves them; ``"threshold"`` sets levels above half of the top one;
            ``"sample"`` sets a value with probability level / (L - 1): one frozen draw for validation and test, a
            fresh draw of the training images per epoch (``Data.train_in_epoch``). The last is one of three
            incompatible things called binarised MNIST: the protocol text names it.
        seed: of the draws. The frozen ones depend on it alone, on every machine and version.

    Raises:
        ValueError: for another ``how``, or if the data are binary already.

    Example:
        >>> images = torch.tensor([0, 3, 4, 8], dtype=torch.uint8).view(1, 1, 2, 2)
        >>> data = Data("tiny", "none", num_levels=9, train=images, valid=images, test=images)
        >>> binarize(data, "threshold").test.flatten().tolist()
        [0, 0, 0, 1]
    """
    if how not in get_args(Binarization):
        raise ValueError(f"how must be one of {get_args(Binarization)}, got {how!r}")
    if how == "none":
        return data
    if data.num_levels == 2:
        raise ValueError(f"{data.name} is binary already; binarize grey images, or use how='none'")
    top = data.num_levels - 1
    if how == "threshold":
        train, valid, test = ((x > top / 2).to(torch.uint8) for x in (data.train, data.valid, data.test))
        protocol = f"{data.protocol}; binarised by the threshold {top / 2:g}"
        return replace(data, protocol=protocol, num_levels=2, train=train, valid=valid, test=test)
    protocol = (
        f"{data.protocol}; sampled binarisation (seed {seed}): a fresh draw of train in each epoch, one frozen draw"
    )
    return replace(
        data,
        protocol=f"{protocol} of valid and test",
        num_levels=2,
        train=sample_binary(data.train, data.num_levels, random_uniform(data.train.shape, seed, 0)),  # as in epoch 0
        valid=sample_binary(data.valid, data.num_levels, frozen_noise(data, "valid", seed)),
        test=sample_binary(data.test, data.num_levels, frozen_noise(data, "test", seed)),
        grey=data.train,
        grey_levels=data.num_levels,
        seed=seed,
    )


def dequantize(levels: Tensor, num_levels: int, noise: Tensor) -> Tensor:
    r"""Continuous values :math:`(x + u) / L` in (0, 1) for a continuous likelihood (Uria et al., 2013).

    With u uniform, the mean log-density is a lower bound of the log-probability of the levels once the volume of a
    level is counted: :math:`\log P(x) \ge E_u \log p((x + u) / L) - D \log L` (Theis et al., 2016).

    Args:
        levels: integer levels 0..L-1, any shape and dtype.
        num_levels: L.
        noise: u in [0, 1), of the shape of ``levels``: fresh for training, :func:`frozen_noise` for figures.

    Returns:
        The shape of ``levels``, the dtype of ``noise``.

    Raises:
        ValueError: if the shapes differ or ``num_levels`` is less than 2.

    Example:
        >>> dequantize(torch.tensor([0, 3]), 4, torch.tensor([0.5, 0.5]))
        tensor([0.1250, 0.8750])
    """
    if noise.shape != levels.shape:
        raise ValueError(f"noise must have the shape of levels, {tuple(levels.shape)}, got {tuple(noise.shape)}")
    if num_levels < 2:
        raise ValueError(f"num_levels must be at least 2, got {num_levels}")
    return (levels.to(noise.dtype) + noise) / num_levels


def frozen_noise(data: Data, part: Literal["valid", "test"], seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), float32, for the validation or test images: always the same ones for a seed.

    Returns:
        (N, C, H, W), the shape of that part.
    """
    return random_uniform(getattr(data, part).shape, seed, 2**32 + _STREAMS[part])  # no epoch has that number
