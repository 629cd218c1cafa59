"""The panels of a run's figure: identifiers, titles and heights.

The code, here and in ``template/page.js``, names a panel by its identifier.
The title of a panel is in ``PANELS`` only.
"""

from typing import Dict, NamedTuple

__all__ = [
    'FOLLOWED',
    'GRAD_NORM',
    'LOSS',
    'LOSS_SCALE',
    'LR',
    'OF_SCALARS',
    'PANELS',
    'REJECTED',
    'Panel',
    'titles',
]

LOSS = 'loss'
GRAD_NORM = 'grad_norm'
LOSS_SCALE = 'loss_scale'
LR = 'lr'
REJECTED = 'rejected'
FOLLOWED = 'followed'


class Panel(NamedTuple):
    """The title and height of a panel.

    Attributes:
        title: Text beside the panel's axis.
        height: Height in pixels.
    """

    title: str
    height: int


# The panels by identifier, top down. On a page of several runs, panels with
# the same identifier have the same range.
PANELS = {
    LOSS: Panel('loss', 200),
    GRAD_NORM: Panel('gradient norm', 170),
    LOSS_SCALE: Panel('loss scale', 100),
    LR: Panel('learning rate', 100),
    REJECTED: Panel('rejected', 120),
    FOLLOWED: Panel('what followed', 130),
}
# The panels that draw curves. All other panels draw rows only.
OF_SCALARS = (LOSS, GRAD_NORM, LOSS_SCALE, LR)


def titles() -> Dict[str, str]:
    """Return the titles of all panels, by identifier."""
    return {name: panel.title for name, panel in PANELS.items()}
