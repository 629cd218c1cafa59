from pathlib import Path

import matplotlib


def save_figure(figure, path):
    """With neither a date nor random ids: the same picture, the same file."""
    style = {'svg.hashsalt': 'mmnanguard', 'svg.fonttype': 'none'}
    is_svg = Path(path).suffix == '.svg'
    keys = ('Creator', 'Date', 'Format', 'Type') if is_svg else ()
    with matplotlib.rc_context(style):
        figure.savefig(path, metadata=dict.fromkeys(keys))
