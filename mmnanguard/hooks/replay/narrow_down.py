"""The search for samples without which a window is finite."""

from typing import Sequence

from mmengine.dist import get_world_size

from mmnanguard.numerics.base.rng_state import read_rng

from .window_replay import WindowReplay

__all__ = ['samples_that_spoil']


def samples_that_spoil(replay: WindowReplay) -> Sequence[int]:
    """Return the sample without which the window is finite, if it is one.

    For operations that mix the samples of a batch, such as a mean, which say
    nothing of single samples. The window is halved again and again, two
    replays at a time. One of the two has to be finite: if both are, no single
    sample is at fault, as in a sum that is too large; if neither is, the
    model is. A fault that depends on random numbers names nobody.

    With several ranks nothing is tried, because a rank that fails to run a
    part of its batch would leave the other ranks waiting.
    """
    suspects: Sequence[int] = range(len(replay.samples))
    if get_world_size() > 1 or len(suspects) < 2:
        return ()
    # Random numbers from after the window.
    if replay.with_rng(read_rng()).run().is_finite:
        return ()
    while len(suspects) > 1:
        halves = suspects[::2], suspects[1::2]
        are_finite = []
        for half in halves:
            rest = set(range(len(replay.samples))).difference(half)
            are_finite.append(replay.of(sorted(rest)).run().is_finite)
        if all(are_finite) or not any(are_finite):
            return ()
        suspects = halves[are_finite.index(True)]
    return suspects
