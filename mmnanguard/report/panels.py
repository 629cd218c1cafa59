"""The panels of a run's figure: identifiers, titles and heights.

The code, here and in ``template/page.js``, names a panel by its identifier.
The title of a panel is in ``PANELS`` only.
"""

from typing import Dict, NamedTuple

__all__ = [
    'FOLLOWED',
    'GRAD_NORM',
    'HEADROOM',
    'LOGITS',
    'LOSS',
    'LOSS_SCALE',
    'LR',
    'OF_SCALARS',
    'OUTPUTS',
    'PANELS',
    'REJECTED',
    'STABILITY_PANELS',
    'UPDATE_RATIO',
    'VALIDATION',
    'Panel',
    'titles',
]

LOSS = 'loss'
GRAD_NORM = 'grad_norm'
LOSS_SCALE = 'loss_scale'
LR = 'lr'
VALIDATION = 'validation'
REJECTED = 'rejected'
FOLLOWED = 'followed'
HEADROOM = 'headroom'
OUTPUTS = 'outputs'
UPDATE_RATIO = 'update_ratio'
LOGITS = 'logits'


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
    VALIDATION: Panel('validation', 130),
    GRAD_NORM: Panel('gradient norm', 170),
    LOSS_SCALE: Panel('loss scale', 100),
    LR: Panel('learning rate', 100),
    REJECTED: Panel('rejected', 120),
    FOLLOWED: Panel('what followed', 130),
}
# The panels that draw curves. All other panels draw rows only.
OF_SCALARS = (LOSS, VALIDATION, GRAD_NORM, LOSS_SCALE, LR)
# The panels of the samples. The height is that of a module in the first one.
STABILITY_PANELS = {
    HEADROOM: Panel('', 14),
    OUTPUTS: Panel('largest output', 210),
    UPDATE_RATIO: Panel('update ratio', 130),
    LOGITS: Panel('attention logits', 130),
}


def titles() -> Dict[str, str]:
    """Return the titles of all panels, by identifier."""
    return {name: panel.title for name, panel in PANELS.items()}
