"""What a policy of 1.x is read with, and its warm-up."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional

from .render import Kept

__all__ = ['CannotMigrate', 'Loop', 'Policy', 'Schedule']

FOREVER = 10**9


@dataclass(frozen=True)
class Loop:
    """What the runner counts.

    Attributes:
        by_epoch: Epochs, or iterations.
        total: How many; a :class:`Kept`, and None if it is not known.
    """

    by_epoch: bool
    total: Optional[Kept]


@dataclass
class Schedule:
    """The schedulers, and what is to be said of them."""

    schedulers: List[Dict[str, Any]] = field(default_factory=list)
    changed: List[str] = field(default_factory=list)
    left: List[str] = field(default_factory=list)


class CannotMigrate(Exception):
    """Why not."""


@dataclass
class Policy:
    """One of the two configs, and the schedulers that it has become so far.

    Attributes:
        by_epoch: What 1.x counts in.
    """

    name: str
    config: Mapping[str, Any]
    loop: Loop
    base: Optional[float]
    made: Schedule
    by_epoch: bool = True

    def __post_init__(self) -> None:
        self.kind = 'LR' if self.name == 'lr_config' else 'Momentum'
        self.word = 'lr' if self.kind == 'LR' else 'momentum'

    def keep(self, key: str, default: Any) -> Any:
        if key in self.config:
            return Kept((self.name, key), self.config[key])
        return default

    def add(self, kind: str, **options: Any) -> None:
        self.made.schedulers.append(dict(type=f'{kind}{self.kind}', **options))

    def counts(self) -> Dict[str, Any]:
        """For what needs no end: the unit that 1.x counts in."""
        return dict(by_epoch=self.by_epoch)

    def clock(self) -> Dict[str, Any]:
        """For what goes on to the end of training."""
        if self.loop.by_epoch and not self.by_epoch:
            return dict(by_epoch=True, convert_to_iter_based=True)
        return dict(by_epoch=self.by_epoch)

    def total(self) -> Any:
        if self.loop.total is None:
            raise CannotMigrate(
                'it needs to know how long training takes, and no runner or '
                'total_epochs says so'
            )
        return self.loop.total

    def after_end(self) -> Any:
        """MMEngine is at the end with the last iteration, 1.x would be with
        the one after it.
        """
        if 'convert_to_iter_based' in self.clock():
            self.made.changed.append(
                f'{self.name} reaches its end one iteration earlier'
            )
            return self.total()
        return self.total().value + 1

    def floor(self) -> Dict[str, Any]:
        absolute = f'min_{self.word}'
        ratio = f'{absolute}_ratio'
        if self.config.get(ratio) is not None:
            floor = dict(eta_min_ratio=self.keep(ratio, None))
        else:
            floor = dict(eta_min=self.keep(absolute, 0.0))
        (value,) = floor.values()
        if getattr(value, 'value', value) and self.config.get('warmup'):
            is_short = self.by_epoch and not self.config.get('warmup_by_epoch')
            when = ' of more than an epoch' if is_short else ''
            self.made.changed.append(
                f'{self.name}: a warm-up{when} and {absolute} work upon each '
                f'other; the {self.word} differs by a fraction of {absolute}'
            )
        return floor

    def ratio(self) -> Any:
        """The floor as a share of where it starts."""
        if self.config.get(f'min_{self.word}_ratio') is not None:
            return self.config[f'min_{self.word}_ratio']
        floor = self.config.get(f'min_{self.word}') or 0.0
        if floor and self.base is None:
            raise CannotMigrate(
                f"min_{self.word} with these restarts needs the optimizer's "
                f'{self.word}, which this file does not know'
            )
        return floor / self.base if floor and self.base else 0.0

    def warm_up(self) -> None:
        kind = self.config.get('warmup')
        if kind is None:
            return
        if self.kind == 'Momentum':
            raise CannotMigrate(
                'warm-up of a momentum begins above it, and MMEngine has no '
                'scheduler that does'
            )
        length = self.keep('warmup_iters', 0)
        ratio = self.keep('warmup_ratio', 0.1)
        clock: Dict[str, Any] = dict(by_epoch=False)
        end = self.config.get('warmup_iters', 0) + 1
        if self.config.get('warmup_by_epoch'):
            if not self.loop.by_epoch or kind == 'exp':
                raise CannotMigrate(
                    f'warmup={kind!r} with warmup_by_epoch needs the number '
                    'of iterations in an epoch: write it in iterations'
                )
            clock = dict(by_epoch=True, convert_to_iter_based=True)
            end = length
            self.made.changed.append(
                'the warm-up ends one iteration earlier: MMEngine is at the '
                'full rate with its last iteration, 1.x was with the next'
            )
        if kind == 'linear':
            self.add('Linear', start_factor=ratio, begin=0, end=end, **clock)
        elif kind == 'constant':
            self.add('Constant', factor=ratio, begin=0, end=end, **clock)
        elif kind == 'exp':
            growth = self.config.get('warmup_ratio', 0.1) ** (-1 / (end - 1))
            self.add('Constant', factor=ratio, end=FOREVER, **clock)
            self.add('Exponential', gamma=growth, begin=0, end=end, **clock)
        else:
            raise CannotMigrate(f'warmup={kind!r} is none of mmcv')
