"""Grad-CAM ensemble stacking for breast histopathology, split by case."""

__version__ = "0.1.0"
__all__ = ["__version__"]
