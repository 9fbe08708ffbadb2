"""Lower: from a trace to operators on pixels, with every crop, pad and shift turned into an origin."""

from torch import Tensor

from . import lower_attention, lower_linear, lower_maps, lower_strides, lower_unfold, lower_views  # noqa: F401  they register their operators
from .lowering import Lowering
from .trace import Trace, UnsupportedModelError

__all__ = ["lower"]


def lower(trace: Trace, live: dict[str, Tensor]) -> Lowering:
    """Translate all operators that depend on the image.

    Args:
        trace: of the model.
        live: its parameters and buffers by name.

    Raises:
        UnsupportedModelError: for an operator outside the vocabulary, or one that mixes pixels other than by
            convolution and shifts.
    """
    lowering = Lowering(trace, live)
    for node in trace.graph.nodes:
        if trace.kinds.get(node) == "spatial" and node is not trace.image:
            lowering.translate(node)
    if trace.output not in lowering.values:
        raise UnsupportedModelError("the model's result does not depend on the image: there is nothing to sample")
    return lowering
