"""The table of the options of ``train``: defaults, help, and which models have them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["EXACT", "MODELS", "TRAINING", "Option"]

EXACT = ("nade", "pixelcnn", "gated-pixelcnn")  # models whose log p(x) is known
_FLAT = ("vae", "iwae")  # pixels are independent given z
_PIXELVAE = ("pixelvae", "gated-pixelvae")
_LATENT = (*_FLAT, *_PIXELVAE)
_PIXEL = ("pixelcnn", "pixelvae", "gated-pixelcnn", "gated-pixelvae")
MODELS = (*_FLAT, *_PIXELVAE, *EXACT)
_WEIGHTED = ("vae", *_PIXELVAE)  # trained by the ELBO
_FLOW_PRIOR = ("prior", ("autoregressive",))
_NET_PROPOSAL = ("proposal", ("coupling", "iaf", "autoregressive"))


class Option:
    """One option of ``train``; its default is filled in late, so that a given value can be told from it.

    ``models`` tells which models have it, ``only`` which values of another option it needs besides. A default that is
    a dict goes by the model, or by the value of that other option; 1 where the dict has none.
    """

    def __init__(
        self,
        default: Any,
        help: str,
        *,
        models: tuple[str, ...] = MODELS,
        only: tuple[str, tuple[Any, ...]] | None = None,
        odd: bool = False,
        below: int | None = None,
        most: float = math.inf,
        check: Callable[[Any], str | None] | None = None,
        **settings: Any,
    ) -> None:
        self.default, self.help, self.models, self.only, self.settings = default, help, models, only, settings
        self.odd, self.below = odd, below  # whole numbers; ``below``: from 0 on, else from 1 on
        self.most = most  # of other numbers
        self.check = check  # instead of all that: what is wrong with a value, or None

    def applies(self, options: Mapping[str, Any]) -> bool:
        """Whether a run with these options has this one."""
        if options.get("model") not in self.models:
            return False
        return self.only is None or options.get(self.only[0]) in self.only[1]

    def default_in(self, options: Mapping[str, Any]) -> Any:
        """The default of a run with these options."""
        if not isinstance(self.default, dict):
            return self.default
        return self.default.get(options["model" if self.only is None else self.only[0]], 1)

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value is None and self.default is None:
            return None
        if self.check is not None:
            return self.check(value)
        if "nargs" in self.settings:
            whole = isinstance(value, list) and value and all(_whole(v) and v >= 1 for v in value)
            return None if whole else "must be integers of at least 1"
        if "choices" in self.settings:
            return (
                None if value in self.settings["choices"] else f"must be one of {', '.join(self.settings['choices'])}"
            )
        kind = self.settings.get("type", str)
        if kind is str:
            return None if isinstance(value, str) and value else "must be a text that is not empty"
        if kind is float:
            number = _whole(value) or isinstance(value, float)
            if number and 0 < value < math.inf and value <= self.most:
                return None
            return (
                "must be positive and finite" if self.most == math.inf else f"must be positive and at most {self.most}"
            )
        if self.below is not None:
            return None if _whole(value) and 0 <= value < self.below else "must be in [0, 2^63)"
        if not _whole(value) or value < 1:
            return "must be an integer of at least 1"
        return "must be odd" if self.odd and value % 2 == 0 else None


def _scale_problem(value: Any) -> str | None:
    try:
        right = value in ("auto", "shared", "pixel") or 0 < float(value) < math.inf
    except (TypeError, ValueError):
        right = False
    return None if right else "must be auto, shared, pixel or a positive number"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TRAINING: Mapping[str, Option] = {
    "model": Option(
        "vae",
        "vae: ELBO; iwae: the same net with the importance-weighted bound; pixelvae, gated-pixelvae: a VAE with a "
        "(gated) PixelCNN decoder; nade, pixelcnn, gated-pixelcnn: autoregressive, exact likelihood; nade for binary "
        "data, gated-pixelcnn without the blind spot of pixelcnn",
        choices=MODELS,
    ),
    "data": Option(
        "digits",
        "'digits' (scikit-learn's, 8x8, no download), a .npz file (x_train and x_test, or train_bits and test_bits, or "
        "X in video order), or idx files as of MNIST (their folder, or the file of the training images), gzipped or "
        "not",
    ),
    "binarize": Option(
        "none",
        "none; threshold: half of the top level; sample: one with probability level/top, drawn afresh in each epoch "
        "for training, once for validation and test",
        choices=("none", "threshold", "sample"),
    ),
    "likelihood": Option(
        "auto",
        "of a pixel given z (and the pixels before it); auto: bernoulli for binary data, else categorical; gaussian "
        "dequantises the levels to (0, 1); logistic_mixture: ten discretised logistics, images of 1 or 3 channels",
        choices=("auto", "bernoulli", "categorical", "gaussian", "logistic_mixture"),
    ),
    "scale": Option(
        "auto",
        "standard deviation of a pixel: shared, one number to learn; pixel, one for each from the net; or a number, "
        "fixed, in units of (0, 1); auto: pixel where pixels are given those before, else shared",
        only=("likelihood", ("gaussian",)),
        check=_scale_problem,
        metavar="S",
    ),
    "stochastic_layers": Option("1", "1, or 2 as in the IWAE paper's second table", models=_FLAT, choices=("1", "2")),
    "latent_size": Option(32, "size of z, of the layer next to the image", models=_LATENT, type=int, metavar="D"),
    "hidden": Option([200, 200], "hidden layers of the encoder", models=_LATENT, type=int, nargs="+", metavar="H"),
    "upper_latent_size": Option(
        16, "size of the second layer of z", models=_FLAT, only=("stochastic_layers", ("2",)), type=int, metavar="D"
    ),
    "upper_hidden": Option(
        [100, 100],
        "hidden layers between both layers of z",
        models=_FLAT,
        only=("stochastic_layers", ("2",)),
        type=int,
        nargs="+",
        metavar="H",
    ),
    "prior": Option(
        "normal",
        "r(z): normal; mixture of Gaussians; vamp, a mixture of the proposals of learned pseudo-inputs; autoregressive,"
        " a masked autoregressive flow; with two stochastic layers of the top one, and no vamp; other than normal, the "
        "ELBO takes the gradient stl unless the proposal is a flow",
        models=_LATENT,
        choices=("normal", "mixture", "vamp", "autoregressive"),
    ),
    "prior_components": Option(
        500, "of the mixture", models=_LATENT, only=("prior", ("mixture", "vamp")), type=int, metavar="K"
    ),
    "prior_flows": Option(2, "layers of the flow", models=_LATENT, only=_FLOW_PRIOR, type=int, metavar="L"),
    "prior_hidden": Option(
        [128, 128], "hidden layers of each", models=_LATENT, only=_FLOW_PRIOR, type=int, nargs="+", metavar="H"
    ),
    "proposal": Option(
        "diagonal",
        "q(z|x): diagonal or full Gaussian; planar flow; affine coupling flow; iaf, an inverse autoregressive flow with"
        " a context; autoregressive, Gaussians one after the other; with two stochastic layers of the one next to the "
        "image",
        models=_LATENT,
        choices=("diagonal", "full", "planar", "coupling", "iaf", "autoregressive"),
    ),
    "num_flows": Option(
        {"planar": 10, "coupling": 4, "iaf": 2},
        "steps of the flow",
        models=_LATENT,
        only=("proposal", ("planar", "coupling", "iaf")),
        type=int,
        metavar="L",
    ),
    "flow_hidden": Option(
        [128, 128], "hidden layers of each", models=_LATENT, only=_NET_PROPOSAL, type=int, nargs="+", metavar="H"
    ),
    "context_size": Option(
        32, "what the encoder tells them", models=_LATENT, only=_NET_PROPOSAL, type=int, metavar="C"
    ),
    "hidden_units": Option(500, "hidden units", models=("nade",), type=int, metavar="H"),
    "order": Option(
        "raster",
        "in which pixels are generated; raster with one order runs on the fastest convolutions",
        models=("nade", "pixelcnn"),
        choices=("raster", "s_curve", "hilbert", "random"),
    ),
    "num_orders": Option(
        1,
        "an ensemble of so many orders (flips and transposes, at most 8; or random ones) with one set of weights: "
        "trained on one order at a time, evaluated as the mean of their probabilities",
        models=("nade", "pixelcnn"),
        type=int,
        metavar="N",
    ),
    "channels": Option(32, "width of the masked stack", models=_PIXEL, type=int, metavar="C"),
    "num_blocks": Option(4, "masked residual blocks", models=_PIXEL, type=int, metavar="B"),
    "first_kernel_size": Option(7, "first (mask A) kernel, odd", models=_PIXEL, odd=True, type=int, metavar="K"),
    "kernel_size": Option(3, "later (mask B) kernels, odd", models=_PIXEL, odd=True, type=int, metavar="K"),
    "num_samples": Option({"iwae": 5}, "samples of z per image in the bound", models=_LATENT, type=int, metavar="K"),
    "estimator": Option(
        "iwae",
        "gradient in the encoder: iwae, that of the value; dreg, doubly reparameterised, with less noise for many "
        "samples; stl, without the encoder's own part of log q; vr, of the bound between IWAE and ELBO (--alpha)",
        models=("iwae",),
        choices=("iwae", "dreg", "stl", "vr"),
    ),
    "alpha": Option(
        0.5,
        "for --estimator vr: towards 0 the IWAE bound, 1 the ELBO",
        models=("iwae",),
        most=1,
        type=float,
        metavar="A",
    ),
    "beta": Option(1.0, "weight of the KL; 1 is the ELBO", models=_WEIGHTED, type=float, metavar="B"),
    "warm_up": Option(
        None,
        "raise the weight of the KL from 0 over the first epochs; --patience counts from then on (default: none)",
        models=_WEIGHTED,
        type=int,
        metavar="E",
    ),
    "free_bits": Option(
        None,
        "nats of KL that cost nothing, against posterior collapse: for each dimension of z with a diagonal proposal and"
        " a normal prior, else for all of z (default: none)",
        models=_WEIGHTED,
        type=float,
        metavar="L",
    ),
    "max_mib": Option(
        None,
        "memory for the samples in MiB: those that do not fit are worked on in chunks, twice (default: all at once)",
        models=_LATENT,
        type=int,
        metavar="MIB",
    ),
    "epochs": Option(100, "passes over the training images; may be raised when resuming", type=int, metavar="E"),
    "batch_size": Option(50, "images in a batch", type=int, metavar="N"),
    "learning_rate": Option(1e-3, "of Adam", type=float, metavar="R"),
    "schedule": Option(
        "constant",
        "of the learning rate R: constant; cosine, from R towards 0 in the last epoch; iwae, R * 10^(-i/7) for 3^i "
        "epochs, i = 0, ..., 7: 3280 epochs in all",
        choices=("constant", "cosine", "iwae"),
    ),
    "epsilon": Option(1e-8, "of Adam", type=float, metavar="EPS"),
    "clip_norm": Option(100.0, "largest norm of the gradient of the mean loss", type=float, metavar="G"),
    "patience": Option(10, "stop after this many epochs without a better validation loss", type=int, metavar="E"),
    "seed": Option(
        0,
        "of weights, order and noise; the split and the frozen draws of validation and test never change",
        below=2**63,
        type=int,
        metavar="S",
    ),
    "device": Option("auto", "cpu, cuda, cuda:1, ...; auto: cuda where there is one", metavar="DEVICE"),
}
