"""A figure's file that is the same for the same figure."""

from pathlib import Path

import matplotlib


def save_figure(figure, path):
    """Write a figure without a date or random ids, so that diffs stay small.

    Args:
        figure: A figure of matplotlib.
        path: The file; its suffix gives the format.
    """
    style = {'svg.hashsalt': 'mmnanguard', 'svg.fonttype': 'none'}
    is_svg = Path(path).suffix == '.svg'
    keys = ('Creator', 'Date', 'Format', 'Type') if is_svg else ()
    with matplotlib.rc_context(style):
        figure.savefig(path, metadata=dict.fromkeys(keys))
