"""Models p(x, z) = p(x | z) r(z) with their proposals, and autoregressive models p(x)."""

from .gated_pixelcnn import GatedPixelCNN
from .latent_variable_model import LatentVariableModel
from .pixelcnn import PixelCNN
from .pixelvae import PixelVAE
from .vae import VAE

__all__ = ["VAE", "GatedPixelCNN", "LatentVariableModel", "PixelCNN", "PixelVAE"]
