"""``fastvae figures four-points``: Gaussian and IAF posteriors beside the exact ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastvae.models import VAE
from fastvae.objectives import elbo
from fastvae.training import fit

from .table import print_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EPOCHS", "as_json", "compute", "draw", "show"]

EPOCHS = 3000
_SAMPLES = 64  # of z for each point and step
_PROPOSALS: dict[str, Any] = {
    "Gaussian": "diagonal",
    "IAF": {"name": "iaf", "num_flows": 4, "hidden_features": [32, 32], "context_features": 8},
}
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_REACH, _CELLS = 5.0, 401  # the grid covers [-5, 5] squared: 2e-6 of the prior is outside


@dataclass(frozen=True)
class Posteriors:
    """The four posteriors of one trained model on the grid; nats."""

    name: str
    proposal: Tensor  # (4, cells, cells) log q(z | x)
    exact: Tensor  # (4, cells, cells) log p(z | x)
    kl: list[float]
    log_prob: list[float]  # log p(x), the sum over the grid
    outside: float  # the largest mass of a q outside of the grid


@dataclass(frozen=True)
class Report:
    """Both models."""

    epochs: int
    seed: int
    models: list[Posteriors]


def compute(epochs: int, seed: int, cells: int = _CELLS) -> Report:
    """Train a VAE with each family of posteriors on four images of one pixel each, and put all on a grid."""
    x = torch.eye(4).view(4, 1, 2, 2)
    models = []
    for name, proposal in _PROPOSALS.items():
        torch.manual_seed(seed)
        model = VAE((1, 2, 2), "bernoulli", 2, (32, 32), "tanh", proposal=proposal)
        with tqdm(total=epochs, desc=name, unit="step") as bar:

            def loss(net: Any, batch: Tensor, bar: Any = bar) -> Tensor:
                bar.update()
                return -elbo(net, batch, num_samples=_SAMPLES)

            fit(
                model,
                loss,
                x,
                epochs=epochs,
                batch_size=4,
                learning_rate=lambda step: 3e-3 * 0.5 * (1.0 + math.cos(math.pi * step / epochs)),
                seed=seed,
                progress=False,
            )
        models.append(_on_grid(name, model.double(), x.double(), cells))
    return Report(epochs, seed, models)


def _on_grid(name: str, model: VAE, x: Tensor, cells: int) -> Posteriors:
    """The densities at the cells' centres; integrals are sums over the cells."""
    area = (2.0 * _REACH / cells) ** 2
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * (2.0 * _REACH / cells) - _REACH
    z = torch.cartesian_prod(centres, centres).unsqueeze(1)  # (cells^2, 1, 2)
    with torch.no_grad():
        q = model.proposal(x)
        blocks = z.split(20_000)
        log_q = torch.cat([q.log_prob(some.expand(-1, 4, -1)) for some in blocks])  # (cells^2, 4)
        joint = torch.cat(
            [model.likelihood(s.expand(-1, 4, -1)).log_prob(x) + model.prior().log_prob(s) for s in blocks]
        )
    log_prob = joint.logsumexp(0) + math.log(area)
    exact = joint - log_prob
    mass = log_q.exp() * area
    shape = (4, cells, cells)
    return Posteriors(
        name,
        log_q.T.reshape(shape),
        exact.T.reshape(shape),
        (mass * (log_q - exact)).sum(0).tolist(),
        log_prob.tolist(),
        float((1.0 - mass.sum(0)).abs().max()),
    )


def show(report: Report) -> None:
    """The table."""
    print(
        f"four images of one white pixel among four, z of 2 dimensions, {report.epochs} steps, seed {report.seed}; KL "
        "of q(z|x) to the exact posterior of the same model on a grid, nats"
    )
    header = [
        "q(z|x)",
        "KL, mean",
        *(f"KL {number}" for number in range(1, 5)),
        "log p(x)",
        "ELBO",
        "off the grid",
    ]
    print_table(header, [_cells(model) for model in report.models])
    print(f"log p(x): at most log 1/4 = {math.log(0.25):.4f} on average; off the grid: largest mass of a q")


def _cells(model: Posteriors) -> list[str]:
    kl, log_prob = sum(model.kl) / 4, sum(model.log_prob) / 4
    each = [f"{value:.4f}" for value in model.kl]
    return [model.name, f"{kl:.4f}", *each, f"{log_prob:.4f}", f"{log_prob - kl:.4f}", f"{model.outside:.0e}"]


def as_json(report: Report) -> dict[str, Any]:
    """Ready for JSON: the numbers, without the grids."""
    models = [
        {"proposal": model.name, "kl": model.kl, "log_prob": model.log_prob, "outside": model.outside}
        for model in report.models
    ]
    return {"epochs": report.epochs, "seed": report.seed, "models": models}


def draw(report: Report) -> Figure:
    """The prior, then q and the exact posterior of each model, four colours for the four images."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(14, 3.5), layout="constrained")
    figure.suptitle(
        "Four data points, z of two dimensions: what each family of posteriors can be, and what it should be",
        fontsize=11,
    )
    panels = iter(figure.subplots(1, 1 + 2 * len(report.models)))
    cells = report.models[0].proposal.shape[-1]
    _densities(next(panels), _prior(cells)[None], ("#444444",), "prior")
    for model in report.models:
        kl = sum(model.kl) / 4
        _densities(next(panels), model.proposal, _COLORS, f"{model.name} q(z|x)\nmean KL to the exact {kl:.3f} nats")
        _densities(next(panels), model.exact, _COLORS, f"exact p(z|x) of the {model.name} model\non a grid")
    return figure


def _prior(cells: int) -> Tensor:
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * (2.0 * _REACH / cells) - _REACH
    squares = centres.square()
    return -0.5 * (squares[:, None] + squares) - math.log(2.0 * math.pi)


def _densities(panel: Any, log_densities: Tensor, colors: tuple[str, ...], title: str) -> None:
    """Regions of highest density that hold 90, 50 and 10 percent."""
    cells = log_densities.shape[-1]
    centres = ((torch.arange(cells) + 0.5) * (2.0 * _REACH / cells) - _REACH).numpy()
    for log_density, color in zip(log_densities, colors, strict=True):
        density = log_density.exp()
        levels = sorted({_level(density, share) for share in (0.9, 0.5, 0.1)})
        grid = density.T.numpy()  # the first dimension of z to the right
        panel.contourf(centres, centres, grid, [levels[0], math.inf], colors=[color], alpha=0.18)
        panel.contour(centres, centres, grid, levels, colors=[color], linewidths=1.0)
    panel.set_title(title, fontsize=9)
    panel.set_xlim(-3.2, 3.2)
    panel.set_ylim(-3.2, 3.2)
    panel.set_aspect("equal")
    panel.tick_params(labelsize=7)


def _level(density: Tensor, share: float) -> float:
    """The density above which so much of the mass lies."""
    ordered = density.flatten().sort(descending=True).values
    mass = ordered.cumsum(0) / ordered.sum()
    return float(ordered[int((mass < share).sum())])
