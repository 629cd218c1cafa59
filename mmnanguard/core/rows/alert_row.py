"""The row of a warning that comes before an update goes bad."""

import math
from dataclasses import dataclass
from typing import Callable, ClassVar, Dict, List, Optional, Sequence, Tuple

from mmnanguard._support.console_line import (
    NAME_WIDTHS,
    fit,
    named,
    shorten_name,
)

from ..undefined_operations import SAFE_OPS
from .row_record import RowRecord

__all__ = [
    'ATTENTION_LOGITS',
    'DIVERGING',
    'HEADROOM',
    'OPERANDS',
    'SCALE_FALLS',
    'UNDERFLOW',
    'UPDATE_RATIO',
    'AlertRow',
]

HEADROOM = 'headroom'
UPDATE_RATIO = 'update_ratio'
ATTENTION_LOGITS = 'attention_logits'
UNDERFLOW = 'underflow'
SCALE_FALLS = 'scale_falls'
DIVERGING = 'diverging'
OPERANDS = 'operands'
# Each clause has forms from full to short.
Clauses = List[Sequence[str]]


@dataclass(frozen=True)
class AlertRow(RowRecord):
    """A number that is far outside of what runs that learn look like.

    Attributes:
        id: The id of the alert.
        run: Id of the run; '' if nothing is guarded.
        attempt: Number of the process start in the run, from 1.
        iter: Iteration of the sample, from 1.
        rule: The rule: 'headroom', 'update_ratio', 'attention_logits',
            'underflow', 'scale_falls', 'diverging' or 'operands'.
        module: The module or the weight that the alert is about; ''  if it is
            about the whole model.
        value: The number that was seen.
        limit: The limit of the rule. For 'headroom', the largest finite number
            of the dtype of the module's outputs.
        dtype: The dtype of the limit; '' if it has none.
        doubles: Number of iterations in which the outputs double, if they
            grow towards the limit, or in which an operand halves.
        left: Number of iterations until they reach the limit, or 0.
        op: For 'operands', the operation, such as 'log'.
        source: Its line, as 'head.py:12'; '' on a rank that did not run it.
        most: For 'update_ratio', the ratio of ``module``.
        loss: For 'update_ratio', the median of the last losses, if it has
            not fallen since the start, or rises; otherwise NaN.
        first_loss: The median of the first losses of the run, likewise.
        first: For 'attention_logits', the number of the first sample; for
            'update_ratio', the largest of the first samples, if it has grown.
        loss_scale: The loss scale of the sample; 1 without one.
        lr: The highest learning rate of the sample; NaN if it is not known.
        advice: What to do: 'fp32', 'lr', 'scale' or ''.
        config: The config line that does so; '' if there is none.
        acted: The advice that the monitor puts into effect; '' if none. Its
            'remedy' rows say what was done.
        cleared: The iteration at which the number was back inside the limit.
            A row with it ends the alert of the same id.
    """

    KIND: ClassVar[str] = 'alert'
    NEEDED: ClassVar[Tuple[str, ...]] = ('rule', 'iter')

    id: str = ''
    run: str = ''
    attempt: int = 1
    iter: int = 0
    rule: str = ''
    module: str = ''
    value: float = math.nan
    limit: float = math.nan
    dtype: str = ''
    doubles: Optional[float] = None
    left: Optional[float] = None
    op: str = ''
    source: str = ''
    most: float = math.nan
    loss: float = math.nan
    first_loss: float = math.nan
    first: Optional[float] = None
    loss_scale: float = 1.0
    lr: float = math.nan
    advice: str = ''
    config: str = ''
    acted: str = ''
    cleared: Optional[int] = None

    def line(self) -> str:
        """Return the console line, of at most 160 columns."""
        if self.cleared is not None:
            over = f'Iter {self.cleared}: the alert of iteration {self.iter}'
            return fit(named(f'{over} is over: {{}}', self.name))
        finding, *others = self._clauses()
        start = f'Iter {self.iter}: alert'
        return fit([f'{start}: {text}' for text in finding], *others)

    def sentence(self) -> str:
        if self.cleared is not None:
            return f'the alert of iteration {self.iter} is over: {self.name}'
        return '; '.join(clause[0] for clause in self._clauses() if clause[0])

    def _clauses(self) -> Clauses:
        """Return the clauses of the alert, each from full to short."""
        describe = SENTENCES.get(self.rule)
        # Another version may know more rules.
        if describe is None:
            return [[f"rule '{self.rule}': {self.value:.3g}"]]
        clauses = describe(self)
        forms = [clauses[0][0]]
        for width in NAME_WIDTHS:
            brief = self.replace(
                module=shorten_name(self.module, width),
                source=shorten_name(self.source, width),
            )
            forms.append(describe(brief)[0][0])
        forms.append(describe(brief)[0][-1])
        return [forms, *clauses[1:]]

    @property
    def name(self) -> str:
        """The number that the alert is about, in words."""
        words = NAMES.get(self.rule, self.rule)
        if self.module and self.rule in (HEADROOM, ATTENTION_LOGITS):
            words = f"{words} of '{self.module}'"
        return words


def headroom(alert: AlertRow) -> Clauses:
    """Describe outputs that come near the limit of their dtype."""
    words = f"outputs of '{alert.module}'"
    if alert.left is not None and alert.doubles is not None:
        clauses: Clauses = [
            [
                f'{words} double every {alert.doubles:.3g} iterations and are '
                f'at {alert.value:.3g}'
            ],
            [f'{alert.dtype} overflows in about {alert.left:.0f}'],
        ]
    else:
        clauses = [
            [
                f'{words} reach {alert.value:.3g} of {alert.limit:.5g} in '
                f'{alert.dtype}'
            ]
        ]
    if not alert.config:
        return [*clauses, slower(alert)]
    in_row = 'float32 cures it: its row has the config line'
    return [*clauses, [f'float32 cures it: {alert.config}', in_row]]


def update_ratio(alert: AlertRow) -> Clauses:
    """Describe updates that are large beside the weights."""
    since = ''
    if alert.first is not None:
        since = f', at the start {percent(alert.first)}'
    losses = ''
    if not math.isnan(alert.loss):
        losses = (
            f'and the loss is at {alert.loss:.4g} (at the start '
            f'{alert.first_loss:.4g})'
        )
    full = (
        f'an update moves the weights by {percent(alert.value)} (median; '
        f"most: '{alert.module}', {percent(alert.most)}; limit "
        f'{percent(alert.limit)}{since})'
    )
    brief = f"an update moves '{alert.module}' by {percent(alert.most)}"
    return [[full, brief], slower(alert), [losses, '']]


def attention_logits(alert: AlertRow) -> Clauses:
    """Describe arguments of a softmax that are too large."""
    ways = [
        f'{words}, or normalize queries and keys' for words in slower(alert)
    ]
    before = ''
    if not alert.advice:
        before = f'they were at {alert.first:.3g} before the first update'
        ways = [
            'divide them by the root of the size of a key, or normalize '
            'queries and keys'
        ]
    return [
        [
            f"attention logits of '{alert.module}' reach {alert.value:.3g} "
            f'(limit {alert.limit:g})'
        ],
        ['the softmax is near one-hot', ''],
        [before, ''],
        ways,
    ]


def underflow(alert: AlertRow) -> Clauses:
    """Describe gradients that vanish in float16."""
    return [
        [
            f'at loss scale {alert.loss_scale:.3g} the largest gradient is '
            f'{alert.value:.3g} in float16, whose smallest number is 6e-08',
            f'at loss scale {alert.loss_scale:.3g} the largest gradient is '
            f'{alert.value:.3g} in float16',
        ],
        ['many gradients become 0', ''],
        [f'raise it: {alert.config}'],
    ]


def scale_falls(alert: AlertRow) -> Clauses:
    """Describe a loss scale that keeps falling."""
    return [
        [
            f'the loss scale has fallen {alert.value:g} times in 100 '
            f'iterations, to {alert.loss_scale:g}: gradients or outputs keep '
            'growing'
        ]
    ]


def diverging(alert: AlertRow) -> Clauses:
    """Describe losses that climb back."""
    finding = (
        f'the median loss is back at {alert.value:.4g}, above '
        f'{alert.limit:.4g}'
    )
    return [[finding], [f'if it goes on, {words}' for words in slower(alert)]]


def operands(alert: AlertRow) -> Clauses:
    """Describe operands that fall towards a pole."""
    what = 'denominator' if alert.op == 'div' else f'argument of {alert.op}'
    place = f' at {alert.source}' if alert.source else ''
    if alert.module:
        place += f" in '{alert.module}'"
    safe = SAFE_OPS.get(alert.op, 'safe_sqrt')
    speed = ''
    if alert.doubles is not None and alert.left is not None:
        speed = (
            f' halves every {alert.doubles:.3g} iterations, reaches 0 in '
            f'about {alert.left:.0f},'
        )
    start, now = f'the smallest {what}{place}', f'is at {alert.value:.3g}'
    full = brief = f'{start} {now}'
    if speed:
        full = f'{start}{speed} and {now}'
        brief = f'{start} reaches 0 in about {alert.left:.0f} iterations'
    cure = f'mmnanguard.numerics.{safe} bounds it'
    return [
        [full, brief],
        ['at 0 its derivative is infinite', ''],
        [f'{cure}, or add a small number', cure],
    ]


def slower(alert: AlertRow) -> Sequence[str]:
    """Return the advice on the learning rate, full and short."""
    now = '' if math.isnan(alert.lr) else f' (now {alert.lr:.3g})'
    short = f'lower the learning rate{now}'
    return [f'{short} or lengthen the warm-up', short]


def percent(share: float) -> str:
    """Return a share in percent."""
    return f'{100 * share:.3g} %'


NAMES = {
    HEADROOM: 'outputs',
    UPDATE_RATIO: 'update ratio',
    ATTENTION_LOGITS: 'attention logits',
    UNDERFLOW: 'gradients in float16',
    SCALE_FALLS: 'loss scale',
    DIVERGING: 'median loss',
    OPERANDS: 'smallest operand',
}
SENTENCES: Dict[str, Callable[[AlertRow], Clauses]] = {
    HEADROOM: headroom,
    UPDATE_RATIO: update_ratio,
    ATTENTION_LOGITS: attention_logits,
    UNDERFLOW: underflow,
    SCALE_FALLS: scale_falls,
    DIVERGING: diverging,
    OPERANDS: operands,
}
