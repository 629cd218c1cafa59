"""The iterations in which samples begin."""

__all__ = ['is_due']


def is_due(iteration: int, interval: int, watch_until: int) -> bool:
    """Whether a sample begins with an iteration.

    Args:
        iteration: The number of iterations that are done.
        interval: Number of iterations between two samples. They are five
            times as dense in the first five intervals, and ten times as dense
            while a number is watched.
        watch_until: The iteration, exclusive, until which it is.
    """
    spacing = interval
    if iteration < 5 * interval:
        spacing = max(interval // 5, 1)
    if iteration < watch_until:
        spacing = max(interval // 10, 1)
    return iteration % spacing == 0
