"""The shared timer of the suites; the demo measures with the same one."""

from fastvae.timing import geometric_mean, interleaved, synchronized

__all__ = ["geometric_mean", "interleaved", "synchronized"]
