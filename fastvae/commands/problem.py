"""What the commands share: the data as a model sees them, the model, its loss, its device."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import fastvae.data
from fastvae import checkpoint, models, objectives
from fastvae.data import Data, dequantize, frozen_noise

from .options import EXACT, is_weighted, stored_options

__all__ = ["CLASSES", "Problem", "bound", "build_model", "check_finite", "device_named", "read_checkpoint"]

_BASES = ("LatentVariableModel", "OrderEnsemble")
CLASSES = {name: getattr(models, name) for name in models.__all__ if name not in _BASES}
_CLASS_OF = {
    "vae": "VAE",
    "iwae": "VAE",
    "pixelvae": "PixelVAE",
    "gated-pixelvae": "PixelVAE",
    "nade": "NADE",
    "pixelcnn": "PixelCNN",
    "gated-pixelcnn": "GatedPixelCNN",
}


@dataclass(frozen=True)
class Problem:
    """Images and the likelihood they are modelled with."""

    data: Data
    likelihood: str
    scale: str = "auto"  # of a gaussian

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Problem":
        """Load what ``train`` was asked for; errors tell which option to change."""
        # the same split and test draw whatever the seed of the run: figures of several seeds must compare
        data = fastvae.data.binarize(fastvae.data.load(options["data"]), options["binarize"])
        likelihood = options["likelihood"]
        if likelihood == "auto":
            likelihood = "bernoulli" if data.num_levels == 2 else "categorical"
        if likelihood == "bernoulli" and data.num_levels != 2:
            raise ValueError(
                f"--likelihood bernoulli needs binary data, {data.name} has {data.num_levels} levels: add --binarize "
                "sample (or threshold), or choose categorical, gaussian or logistic_mixture"
            )
        return cls(data, likelihood, options.get("scale", "auto"))

    def family(self, model: str) -> dict[str, Any]:
        """The likelihood as the constructors of models take it."""
        if self.likelihood in ("categorical", "logistic_mixture"):
            return {"name": self.likelihood, "num_levels": self.data.num_levels}
        if self.likelihood == "gaussian":
            # given the pixels before, some pixels are far more certain than others
            auto = "pixel" if "pixel" in model else "shared"
            named = {"auto": auto, "shared": "shared", "pixel": "pixel"}
            return {"name": "gaussian", "scale": named.get(self.scale) or float(self.scale)}
        return {"name": self.likelihood}

    def fresh(self, levels: Tensor) -> Tensor:
        """A training batch as the model sees it; continuous values get new noise from torch's generator."""
        if self.likelihood == "gaussian":
            return dequantize(levels, self.data.num_levels, torch.rand(levels.shape, device=levels.device))
        return levels.float()

    def frozen(self, part: Literal["valid", "test"]) -> Tensor:
        """All validation or test images as the model sees them; continuous values get the same noise each time."""
        levels: Tensor = getattr(self.data, part)
        if self.likelihood == "gaussian":
            return dequantize(levels, self.data.num_levels, frozen_noise(self.data, part))
        return levels.float()

    @property
    def log_volume(self) -> float:
        """What turns a log-density of dequantised values into a lower bound of the log-probability of the levels."""
        return (
            -math.prod(self.data.event_shape) * math.log(self.data.num_levels) if self.likelihood == "gaussian" else 0.0
        )

    def check_fits(self, model: Any, folder: str | Path) -> None:
        """Raise ``ValueError`` if the images are not of the kind the model of ``folder`` was made for."""
        shape, levels = tuple(model.event_shape), model.family.num_levels
        if self.data.event_shape != shape:
            raise ValueError(f"--data {self.data.name} has images of {self.data.event_shape}, {folder} models {shape}")
        if levels is not None and levels != self.data.num_levels:
            raise ValueError(f"--data {self.data.name} has {self.data.num_levels} levels, {folder} models {levels}")

    def bits_per_dim(self, log_prob: float) -> float:
        """From nats per image; upper bounds for densities of dequantised values."""
        return -(log_prob + self.log_volume) / (math.prod(self.data.event_shape) * math.log(2))


def build_model(options: Mapping[str, Any], problem: Problem) -> nn.Module:
    """A new model, initialised from ``options["seed"]``, at the marginals of the training images where it can be."""
    torch.manual_seed(options["seed"])
    if options["model"] == "nade" and problem.likelihood != "bernoulli":
        raise ValueError(
            f"--model nade is for binary data, got {problem.data.num_levels} levels: add --binarize sample (or "
            "threshold)"
        )
    model = CLASSES[_class_of(options)](problem.data.event_shape, problem.family(options["model"]), **_sizes(options))
    if hasattr(model, "start_at_marginals"):
        model.start_at_marginals(problem.fresh(problem.data.train[:10_000]))  # enough for marginals
    return model


def _class_of(options: Mapping[str, Any]) -> str:
    """The name of the model's class."""
    if options.get("stochastic_layers") == "2":
        return "HierarchicalVAE"
    if options["model"] == "pixelcnn" and (options["order"], options["num_orders"]) != ("raster", 1):
        return "OrderedPixelCNN"
    return _CLASS_OF[options["model"]]


def _sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The other arguments of the model's class."""
    if options["model"] == "nade":
        return {"hidden_features": options["hidden_units"]} | {key: options[key] for key in ("order", "num_orders")}
    if options.get("stochastic_layers") == "2":
        return {
            "latent_sizes": (options["latent_size"], options["upper_latent_size"]),
            "hidden_sizes": (options["hidden"], options["upper_hidden"]),
            "prior": _prior(options),
            "proposal": _proposal(options),
        }
    names = ["channels", "num_blocks", "first_kernel_size", "kernel_size"]
    if _class_of(options) == "OrderedPixelCNN":
        names += ["order", "num_orders"]
    sizes = {name: options[name] for name in names if name in options}
    if "latent_size" in options:
        sizes |= {"latent_size": options["latent_size"], "hidden_sizes": options["hidden"]}
        sizes |= {"prior": _prior(options), "proposal": _proposal(options)}
    if options["model"] == "gated-pixelvae":
        sizes["gated"] = True
    return sizes


def _prior(options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the prior."""
    names = {"prior_components": "num_components", "prior_flows": "num_flows", "prior_hidden": "hidden_features"}
    return {"name": options["prior"]} | {names[key]: options[key] for key in names if key in options}


def _proposal(options: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the proposal."""
    names = {"num_flows": "num_flows", "flow_hidden": "hidden_features", "context_size": "context_features"}
    return {"name": options["proposal"]} | {names[key]: options[key] for key in names if key in options}


def bound(options: Mapping[str, Any], model: Any, x: Tensor, epoch: int | None = None) -> Tensor:
    """What training maximises, (N,) nats: the exact log p of an autoregressive model (with several orders that of one
    of them), the IWAE bound, or the ELBO, in training epoch ``epoch`` (0, 1, ...) or after the warm-up."""
    if options["model"] in EXACT:
        return model.bound(x) if isinstance(model, models.OrderEnsemble) else model.log_prob(x)
    shared = {
        "num_samples": options["num_samples"],
        "max_bytes": None if options["max_mib"] is None else options["max_mib"] * 2**20,
    }
    if options["model"] == "iwae":
        alpha = options["alpha"] if options["estimator"] == "vr" else None
        return objectives.iwae(model, x, estimator=options["estimator"], alpha=alpha, **shared)
    if is_weighted(options):
        warm_up = options["warm_up"]
        share = 1.0 if epoch is None or warm_up is None else min(1.0, epoch / warm_up)
        return objectives.weighted_elbo(
            model, x, options["num_samples"], beta=share * options["beta"], free_bits=options["free_bits"] or 0.0
        )
    return objectives.elbo(model, x, estimator=_elbo_estimator(options), **shared)


def _elbo_estimator(options: Mapping[str, Any]) -> Literal["elbo", "stl"]:
    """STL where the KL has no closed form because of the prior: of an estimated KL, the score of q is mostly noise,
    which costs more nats than an expressive prior gains. A flow as the proposal would pay for it in time."""
    estimated = options["prior"] != "normal" and options["proposal"] in ("diagonal", "full")
    return "stl" if estimated else "elbo"


def read_checkpoint(folder: str | Path, device: torch.device, weights: Literal["best", "last"]) -> tuple[Any, dict]:
    """The model of a checkpoint that ``train`` made, and the options it was trained with.

    Raises:
        ValueError: if the checkpoint is missing or damaged, or one of its weights is not finite.
    """
    options = stored_options(folder)
    model = checkpoint.load_model(folder, CLASSES, weights=weights, device=device)
    if type(model) is not CLASSES[_class_of(options)]:
        raise ValueError(
            f"{folder}/config.json is damaged: its model is a {type(model).__name__}, its options are of "
            f"{options['model']}"
        )
    for name, tensor in model.state_dict().items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise ValueError(f"{folder}: {bad} of {tensor.numel()} values of the {weights} {name} are not finite")
    return model, options


def check_finite(values: Tensor, what: str, folder: str | Path) -> None:
    """Raise ``ValueError`` if a model of finite weights gave infinite values or nan.

    Args:
        values: (N, ...), one row for each image.
        what: the name of ``values``.
        folder: the checkpoint of the model.
    """
    bad = int((~values.isfinite()).reshape(len(values), -1).any(1).sum())
    if bad:
        raise ValueError(f"{what} of {bad} of {len(values)} images is not finite under the model of {folder}")


def device_named(name: str) -> torch.device:
    """``"auto"`` or a device that this machine has."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device
