"""What a person would write for one net: the wavefront of ``PixelCNN`` with binary pixels, and naive sampling graphed.

Baselines of bench_sampling.py. The loop knows its net, so it says what the generic path costs on top.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvae.models import PixelCNN

__all__ = ["HandwrittenSampler", "graphed"]


class HandwrittenSampler:
    """Draws a batch of images: cells in the order of the steps, caches and buffers allocated once, ``out=`` everywhere.

    Args:
        net: a PixelCNN of binary images without a condition, whose first kernel is at least as large as the later ones.
        batch: B.
    """

    def __init__(self, net: PixelCNN, batch: int) -> None:
        _, self.height, self.width = net.event_shape
        first, later = net.options["first_kernel_size"], net.options["kernel_size"]
        skew = first // 2 + 1
        rows, columns = torch.meshgrid(torch.arange(self.height), torch.arange(self.width), indexing="ij")
        times = (columns + skew * rows).flatten()
        order = times.argsort(stable=True)
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(1, len(order) + 1)  # cell 0 is all pixels outside
        self.cells = order
        counts = torch.bincount(times, minlength=self.width + skew * (self.height - 1)).cumsum(0).tolist()
        self.steps = list(zip([0, *counts[:-1]], counts, strict=True))
        device, dtype = net.last.weight.device, net.last.weight.dtype
        self.weights = {
            "first": self._taps(net.first.weight, first, centre=False),
            "blocks": [(self._taps(block.masked.weight, later, centre=True), block.masked.bias.detach(),
                        block.mix.weight.detach()[:, :, 0, 0].t().contiguous(), block.mix.bias.detach())
                       for block in net.blocks],
            "hidden": net.hidden.weight.detach()[:, :, 0, 0].t().contiguous(),
            "last": net.last.weight.detach()[:, :, 0, 0].t().contiguous(),
        }  # fmt: skip
        self.net, self.batch = net, batch
        channels, most = net.options["channels"], max(end - start for start, end in self.steps)
        self.first_index = self._index(first, batch, centre=False).to(device)
        self.index = self._index(later, batch, centre=True).to(device)
        self.first_taps, self.num_taps = len(self._offsets(first, False)), len(self._offsets(later, True))
        new = net.last.weight.detach().new_zeros
        self.image = new((len(order) + 1) * batch)
        self.scaled = new((len(order) + 1) * batch)
        self.caches = [new((len(order) + 1) * batch, channels) for _ in net.blocks]
        self.h, self.u, self.m = (new(most * batch, channels) for _ in range(3))
        self.logits = new(len(order) * batch, 1)
        self.gathered = new(most * batch * self.num_taps, channels)
        self.first_gathered = new(most * batch * self.first_taps)
        self.noise = torch.zeros(len(order) * batch, 1, dtype=dtype, device=device)

    @torch.inference_mode()
    def __call__(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform numbers (B, 1, H, W) -> images (B, 1, H, W) and their log-probabilities (B,)."""
        batch, net, weights = self.batch, self.net, self.weights
        u = uniform.flatten(1).t()[self.cells].reshape(-1, 1)  # (cells * B, 1)
        torch.sub(u.log(), (-u).log1p(), out=self.noise)
        image = self.image.view(-1, 1)
        for start, end in self.steps:
            here, n = slice(start * batch, end * batch), (end - start) * batch
            cells = slice((1 + start) * batch, (1 + end) * batch)
            h, u, m = self.h[:n], self.u[:n], self.m[:n]
            taps = self.first_gathered[: n * self.first_taps]
            index = self.first_index[start * batch * self.first_taps : end * batch * self.first_taps]
            torch.index_select(self.scaled, 0, index, out=taps)
            torch.addmm(net.first.bias, taps.view(n, -1), weights["first"], out=h)
            index = self.index[start * batch * self.num_taps : end * batch * self.num_taps]
            taps = self.gathered[: n * self.num_taps]
            for cache, (masked, masked_bias, mix, mix_bias) in zip(self.caches, weights["blocks"], strict=True):
                torch.clamp_min(h, 0, out=cache[cells])
                torch.index_select(cache, 0, index, out=taps)
                torch.addmm(masked_bias, taps.view(n, -1), masked, out=u)
                torch.clamp_min(u, 0, out=u)
                torch.addmm(mix_bias, u, mix, out=m)
                torch.add(h, m, out=h)
            torch.clamp_min(h, 0, out=h)
            torch.addmm(net.hidden.bias, h, weights["hidden"], out=u)
            torch.clamp_min(u, 0, out=u)
            torch.addmm(net.last.bias, u, weights["last"], out=self.logits[here])
            torch.lt(self.noise[here], self.logits[here], out=image[cells])
            torch.add(-1.0, image[cells], alpha=2.0, out=self.scaled.view(-1, 1)[cells])
        drawn = image[batch:]
        nats = -F.softplus((1.0 - 2.0 * drawn) * self.logits).view(-1, batch).double().sum(0).float()
        images = drawn.view(-1, batch)[self.place.to(drawn.device) - 1].t()
        return images.reshape(batch, 1, self.height, self.width).contiguous(), nats

    @staticmethod
    def _offsets(size: int, centre: bool) -> list[tuple[int, int]]:
        half = size // 2
        above = [(row, column) for row in range(-half, 0) for column in range(-half, half + 1)]
        return above + [(0, column) for column in range(-half, centre)]

    def _taps(self, weight: Tensor, size: int, centre: bool) -> Tensor:
        """(taps * C_in, C_out)."""
        half = size // 2
        taps = [weight.detach()[:, :, half + row, half + column] for row, column in self._offsets(size, centre)]
        return torch.stack(taps).transpose(1, 2).flatten(0, 1).contiguous()

    def _index(self, size: int, batch: int, centre: bool) -> Tensor:
        """For each cell, image and tap the row that it reads."""
        rows, columns = self.cells // self.width, self.cells % self.width
        places = []
        for row, column in self._offsets(size, centre):
            y, x = rows + row, columns + column
            inside = (y >= 0) & (x >= 0) & (x < self.width)
            where = (y * self.width + x).clamp(0, len(self.cells) - 1)
            places.append(torch.where(inside, self.place[where], 0))
        index = torch.stack(places, 1)[:, None] * batch + torch.arange(batch)[None, :, None]
        return index.flatten()


def graphed(model: torch.nn.Module, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """``model`` on CUDA images of one shape, replayed as a CUDA graph."""
    static = torch.zeros(shape, device="cuda", dtype=next(model.parameters()).dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        model(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = model(static)

    def replay(images: Tensor) -> Tensor:
        static.copy_(images)
        graph.replay()
        return result

    return replay
