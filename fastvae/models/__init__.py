"""Models p(x, z) = p(x | z) r(z) with their proposals, and autoregressive models p(x)."""

from .gated_pixelcnn import GatedPixelCNN
from .hierarchical_vae import HierarchicalVAE
from .latent_variable_model import LatentVariableModel
from .nade import NADE
from .order_ensemble import OrderEnsemble
from .ordered_pixelcnn import OrderedPixelCNN
from .pixelcnn import PixelCNN
from .pixelvae import PixelVAE
from .vae import VAE

__all__ = [
    "NADE",
    "VAE",
    "GatedPixelCNN",
    "HierarchicalVAE",
    "LatentVariableModel",
    "OrderEnsemble",
    "OrderedPixelCNN",
    "PixelCNN",
    "PixelVAE",
]
