"""What ``accelerate`` did: which layers were swapped, which were not and why."""

from dataclasses import dataclass, field

from torch import nn

from .layer import Accelerated, restore_class
from .walk import walk

__all__ = ["Report", "Skipped", "Swapped", "restore"]


@dataclass(frozen=True)
class Swapped:
    """A layer that takes the fast way now.

    Attributes:
        path: as in ``model.named_modules()``; ``name[0]`` is an entry of a plain list.
        also_at: further paths of the same module.
        style: how the original masks: "masked weight", "mask in place", or a mixture in words.
        mask: "A", "B", "vertical", "vertical-strict", or the window that another mask keeps.
        kernel_size: (kH, kW).
    """

    path: str
    also_at: tuple[str, ...]
    style: str
    mask: str
    kernel_size: tuple[int, int]

    def __str__(self) -> str:
        shared = f" (also at {', '.join(self.also_at)})" if self.also_at else ""
        rows, columns = self.kernel_size
        return f"{self.path or '(the model)'}{shared}: {rows}x{columns}, mask {self.mask}, {self.style}"


@dataclass(frozen=True)
class Skipped:
    """A layer that could have been meant and was left alone.

    Attributes:
        path: as in ``Swapped``.
        kind: the name of its class.
        reason: why it stays.
    """

    path: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or '(the model)'}: {self.kind}, {self.reason}"


@dataclass
class Report:
    """The result of :func:`fastvae.accelerate`; printing it shows both lists.

    Attributes:
        swapped: the layers that changed.
        skipped: convolutions that did not, each with the reason; 1x1 convolutions are not mentioned.
        verified: whether outputs and gradients of the whole model were compared before and after.
    """

    swapped: list[Swapped]
    skipped: list[Skipped]
    verified: bool
    modules: list[nn.Module] = field(repr=False, default_factory=list)

    def restore(self) -> None:
        """Give the swapped layers their own forward again; a layer that was restored before is passed over.

        Raises:
            RuntimeError: if other code has changed the class of a layer since.
        """
        for module in self.modules:
            if isinstance(module, Accelerated):
                restore_class(module)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}" + (", verified on the example" if self.verified else "")]
        lines += [f"  {entry}" for entry in self.swapped]
        if self.skipped:
            lines += [f"left alone {len(self.skipped)}", *(f"  {entry}" for entry in self.skipped)]
        return "\n".join(lines)


def restore(model: nn.Module) -> list[str]:
    """Undo :func:`fastvae.accelerate` everywhere in ``model``.

    Args:
        model: any module; one that was never accelerated is left as it is.

    Returns:
        The paths of the layers that have their own forward again.

    Raises:
        TypeError: if ``model`` is no ``nn.Module``.
        RuntimeError: if other code has put a further class on top of an accelerated one.

    Example:
        >>> restore(nn.Sequential(nn.ReLU()))
        []
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    restored = []
    for path, module in walk(model):
        if isinstance(module, Accelerated):
            restore_class(module)
            restored.append(path)
    return restored
