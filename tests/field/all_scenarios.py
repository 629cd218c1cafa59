"""The modules that hold scenarios; an import registers what is in them."""

from . import (  # noqa: F401
    adversarial,
    detection,
    explosions,
    generative,
    healthy,
    language,
    optimizers,
    pretraining,
    science,
    segmentation,
    setups,
    three_d,
    vision,
)
from .scenario import SCENARIOS

__all__ = ['SCENARIOS']
