"""Replays with what the user could change, to recommend only what helps."""

import math
from contextlib import suppress
from typing import Callable, Dict

import torch

from mmnanguard.core import Autopsy, GuardEvent
from mmnanguard.core.rows.autopsy import GRADS
from mmnanguard.numerics.probe.replay import Pass

from .window_replay import WindowReplay

__all__ = ['try_cures']


def try_cures(
    replay: WindowReplay,
    autopsy: Autopsy,
    event: GuardEvent,
    without_samples: bool,
) -> Dict[str, bool]:
    """Run the window once with each cure; collective if the model is.

    The arguments and the settings decide which cures are tried, and all
    ranks share them.

    Args:
        replay: The replay of the window.
        autopsy: The findings, equal on all ranks.
        event: The event that rejected the window, equal on all ranks.
        without_samples: Whether to leave out the samples that the autopsy
            blames, on the rank that has them.

    Returns:
        For each cure of ``CURES`` that was tried, whether the window, or its
        gradients, are finite with it on this rank.
    """
    # A fault that did not happen again needs no cure, and bad weights have
    # none.
    if not autopsy.repeats or autopsy.phase == 'weight':
        return {}
    optimizer = event.optimizer
    tried: Dict[str, bool] = {}
    setting = replay.setting_of(optimizer)
    attempts: Dict[str, Callable[[], Pass]] = {}
    # No precision makes bad inputs finite.
    is_of_model = autopsy.phase != 'input'
    if is_of_model and autopsy.fp32_is_finite is not None:
        tried['fp32'] = autopsy.fp32_is_finite
    if is_of_model and setting.dtype is torch.float16:
        attempts['bfloat16'] = lambda: replay.run_in(
            optimizer, dtype=torch.bfloat16, loss_scale=1.0
        )
    floor = replay.lowest_scale_of(optimizer)
    # The forward pass does not know the scale, but gradients may have
    # overflowed beside a bad loss.
    scale_cure = 'lower_scale' if math.isfinite(event.loss) else GRADS
    if is_of_model and event.num_bad_params > 0 and setting.loss_scale > floor:
        attempts[scale_cure] = lambda: replay.run_in(
            optimizer, loss_scale=floor
        )
    if without_samples:
        attempts['without_samples'] = replay.without(autopsy).run
    for cure, attempt in attempts.items():
        # The model's code may raise anything in another precision.
        with suppress(Exception):
            result = attempt()
            tried[cure] = result.is_finite
            if cure == GRADS:
                tried[cure] = result.grads_are_finite
    return tried
