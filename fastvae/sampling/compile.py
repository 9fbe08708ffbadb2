"""``compile_sampler``: from a network and a few words about it to a sampler."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from .backends import BACKENDS, BackendName
from .engine import Likelihood
from .inputs import require_sizes, require_tensor
from .sampler import Sampler

__all__ = ["compile_sampler"]


def compile_sampler(
    model: nn.Module,
    event_shape: Sequence[int] | None = None,
    likelihood: Likelihood | None = None,
    *,
    condition_shape: Sequence[int] | None = None,
    example_condition: Tensor | None = None,
    fallback: Literal["naive"] | None = None,
    schedule: Literal["auto", "wavefront", "row", "levels"] = "auto",
    backend: BackendName = "auto",
) -> Sampler:
    r"""Plan exact sampling for a causal network as it is.

    The network is traced to ATen operators, every operator gets the offsets at which it reads pixels, and the longest
    path from a pixel to the next gives the smallest skew s such that pixel (i, j) can be drawn at step
    :math:`j + s i`: W + s (H - 1) steps instead of H W passes, and each value is computed once. This is the smallest
    skew of a wavefront; it is the longest chain of dependencies for plain stacks of convolutions, while dilated ones
    have shorter chains. Values are drawn as x = g(u, f(x)), so ``verify=True`` can prove them exact with a single
    parallel pass.

    The channels of a pixel are drawn together, or one after the other where the model orders them (colour masks); a
    callable likelihood then gets the channels of one group only.

    Networks that are causal in another order than raster order (locally masked convolutions along an s-curve or a
    Hilbert curve) are drawn by the levels of their dependencies: each pixel as soon as all it depends on is there.

    Networks with strides are drawn so, too, and causal self-attention over the pixels keeps its keys and values.

    Not covered: pooling and other layers that mix pixels by anything else than convolutions, shifts and attention (see
    ``fallback``).

    Args:
        model: ``model(x)`` or ``model(x, condition)`` with x (N, C, H, W) gives (N, C * P, H, W), the P parameters of
            each value (those of a pixel for a logistic mixture); it must be causal in some order of the pixels. Any
            module made of convolutions, shifts, pads and crops, linear layers and functions of single pixels.
        event_shape: (C, H, W); by default ``model.event_shape``.
        likelihood: "bernoulli" (P = 1 logit), "categorical" (P logits of the levels 0..P-1), "gaussian" (P = 2, mean
            and log-scale), an object with one of these as its ``name``, a ``LogisticMixtureLikelihood`` (C = 1 or 3,
            its 3 K or 10 K parameters for each pixel, whose channels are drawn one after the other), or a callable
            g(u, params) with u (..., C) and params (..., C, P) that gives values (..., C) and is monotone in u. By
            default ``model.likelihood`` or ``model.family`` if that has a name.
        condition_shape: the shape of the condition of one image, (d,) or (C, H, W); by default
            ``model.condition_shape``, None for none.
        example_condition: instead, a condition for some images, (N, ...).
        fallback: "naive" to sample with one full pass per pixel where planning fails for an operator that it does not
            know. A model that is not causal is refused all the same: where the operators do not tell, its parameters
            are probed at one random image when it is compiled.
        schedule: "wavefront", "row" (one pixel after the other, what reads finished rows only a whole row at once), or
            "auto" for the one whose estimated time is shorter at the batch size; ``plan`` tells why.
        backend: "torch" runs the steps as torch calls; "cuda_graph" captures those of a whole image once per batch size
            and replays them; "triton" draws whole images in one launch of a persistent kernel, for plain masked and
            gated two-stack nets. The last two need a CUDA device, and draw neither completions nor at other
            temperatures: a call that they cannot serve raises ``RuntimeError``. "auto" takes what
            :func:`fastvae.backend` forces, else the one that was measured to be the fastest for the batch size on the
            device, else torch; the sampler prints what it can use and why.

    Returns:
        A :class:`Sampler`.

    Raises:
        TypeError, ValueError: for arguments that make no sense.
        UnsupportedModelError: a ValueError, if the model is not causal, uses batch statistics or random numbers, or,
            without a fallback, has an operator outside the vocabulary; it names the operator, the module and the line.

    Example:
        >>> import torch, fastvae
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Conv2d(1, 1, 3, padding=1)
        >>> _ = net.weight.data[:, :, 1, 1:].zero_(), net.weight.data[:, :, 2].zero_()  # mask A
        >>> sampler = fastvae.compile_sampler(net, (1, 8, 8), "bernoulli")
        >>> sampler.plan.num_steps, sampler.plan.skew
        (22, 2)
        >>> out = sampler(5, seed=0, verify=True)
        >>> out.samples.shape, out.log_prob.shape, out.certificate.ok
        (torch.Size([5, 1, 8, 8]), torch.Size([5]), True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if type(model).forward is nn.Module.forward:
        raise TypeError(
            f"model must be an autoregressive network, called as model(x), but {type(model).__name__} has no forward; "
            "samples of a latent-variable model come from model.likelihood(model.prior().sample((n,))).sample()"
        )
    if fallback not in (None, "naive"):
        raise ValueError(f"fallback must be None or 'naive', got {fallback!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if condition_shape is not None and example_condition is not None:
        raise ValueError("give condition_shape or example_condition, not both")
    if event_shape is None:
        event_shape = getattr(model, "event_shape", None)
        if event_shape is None:
            raise ValueError("event_shape is missing: the model has no attribute of that name, pass (C, H, W)")
    shape = require_sizes("event_shape", event_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"event_shape must be (C, H, W) with positive sizes, got {shape}")
    if likelihood is None:
        named = (getattr(model, attribute, None) for attribute in ("likelihood", "family"))
        likelihood = next((each for each in named if isinstance(getattr(each, "name", None), str)), None)
        if likelihood is None:
            raise ValueError("likelihood is missing: pass 'bernoulli', 'categorical', 'gaussian' or g(u, params)")
    if example_condition is not None:
        require_tensor("example_condition", example_condition)
        condition_shape = example_condition.shape[1:]
    elif condition_shape is None:
        condition_shape = getattr(model, "condition_shape", None)
    if condition_shape is not None:
        condition_shape = require_sizes("condition_shape", condition_shape)
    if schedule not in ("auto", "wavefront", "row", "levels"):
        raise ValueError(f"schedule must be 'auto', 'wavefront', 'row' or 'levels', got {schedule!r}")
    return Sampler(model, shape, likelihood, condition_shape, fallback, schedule, backend)
