"""The policy of an ``lr_config`` or ``momentum_config``, and its warm-up."""

from dataclasses import dataclass, field
from typing import List, Mapping, Optional

from .config_value import ConfigDict, ConfigValue
from .render import Kept

__all__ = ['CannotMigrate', 'Loop', 'Policy', 'Schedule']

# An end in iterations that no training reaches; MMEngine's default (INF in
# mmengine/optim/scheduler/param_scheduler.py) is the same number.
FOREVER = 10**9


@dataclass(frozen=True)
class Loop:
    """The training loop.

    Attributes:
        by_epoch: Whether its length is in epochs; otherwise it is in
            iterations.
        total: The length of training; None if it is not known.
        is_known: Whether a config says anything of the loop.
    """

    by_epoch: bool
    total: Optional[Kept]
    is_known: bool = True


@dataclass
class Schedule:
    """The schedulers that a config becomes, and the notes on them.

    Attributes:
        schedulers: The configs of the schedulers.
        changed: The notes on differences in behaviour.
        left: The reasons why the config cannot be migrated.
    """

    schedulers: List[ConfigDict] = field(default_factory=list)
    changed: List[str] = field(default_factory=list)
    left: List[str] = field(default_factory=list)


class CannotMigrate(Exception):
    """The reason why a config has no counterpart in MMEngine."""


@dataclass
class Policy:
    """A config of 1.x, and the schedulers that it has become so far.

    Attributes:
        name: The key of the config, 'lr_config' or 'momentum_config'.
        config: The value of the key.
        loop: The training loop.
        base: The optimizer's learning rate or momentum, if it is known.
        made: The schedulers and notes so far.
        by_epoch: Whether 1.x counts this policy in epochs.
        kind: 'LR' or 'Momentum', the ending of the schedulers' names.
        word: 'lr' or 'momentum', a part of the keys' names.
    """

    name: str
    config: Mapping[str, ConfigValue]
    loop: Loop
    base: Optional[float]
    made: Schedule
    by_epoch: bool = True

    def __post_init__(self) -> None:
        self.kind, self.word = 'Momentum', 'momentum'
        if self.name == 'lr_config':
            self.kind, self.word = 'LR', 'lr'

    def keep(self, key: str, default: ConfigValue) -> ConfigValue:
        """Carry over an option, or return the default of 1.x."""
        if key in self.config:
            return Kept((self.name, key), self.config[key])
        return default

    def add(self, kind: str, **options: ConfigValue) -> None:
        """Add a scheduler, by its name without 'LR' or 'Momentum'."""
        self.made.schedulers.append(dict(type=f'{kind}{self.kind}', **options))

    def counts(self) -> ConfigDict:
        """Return the unit of a scheduler without an end."""
        return dict(by_epoch=self.by_epoch)

    def clock(self) -> ConfigDict:
        """Return the unit of a scheduler that lasts until training ends.

        1.x may change the rate at each iteration of a loop of epochs;
        MMEngine takes epochs and converts them to iterations.
        """
        if self.loop.by_epoch and not self.by_epoch:
            return dict(by_epoch=True, convert_to_iter_based=True)
        return dict(by_epoch=self.by_epoch)

    def total(self) -> Kept:
        """Return the length of training.

        Raises:
            CannotMigrate: If no key has the length.
        """
        if self.loop.total is None:
            raise CannotMigrate(
                'it needs to know how long training takes, and no runner or '
                'total_epochs says so'
            )
        return self.loop.total

    def after_end(self) -> ConfigValue:
        """Return the end of a scheduler that reaches its final rate.

        MMEngine reaches the final rate with the scheduler's last iteration;
        1.x would reach it with the iteration after that.
        """
        if 'convert_to_iter_based' in self.clock():
            self.made.changed.append(
                f'{self.name} reaches its end one iteration earlier'
            )
            return self.total()
        return self.total().value + 1

    def floor(self) -> ConfigDict:
        """Return the option for the smallest rate, absolute or a ratio."""
        absolute = f'min_{self.word}'
        ratio = f'{absolute}_ratio'
        if self.config.get(ratio) is not None:
            floor = dict(eta_min_ratio=self.keep(ratio, None))
        else:
            floor = dict(eta_min=self.keep(absolute, 0.0))
        (value,) = floor.values()
        # mmcv applies the warm-up to the finished rate, floor included;
        # MMEngine's schedulers multiply the distance to the floor.
        if getattr(value, 'value', value) and self.config.get('warmup'):
            is_short = self.by_epoch and not self.config.get('warmup_by_epoch')
            when = ' of more than an epoch' if is_short else ''
            self.made.changed.append(
                f'{self.name}: a warm-up{when} and {absolute} work upon each '
                f'other; the {self.word} differs by a fraction of {absolute}'
            )
        return floor

    def ratio(self) -> ConfigValue:
        """Return the smallest rate as a ratio of the optimizer's rate.

        Raises:
            CannotMigrate: If the smallest rate is absolute and the
                optimizer's rate is unknown.
        """
        if self.config.get(f'min_{self.word}_ratio') is not None:
            return self.config[f'min_{self.word}_ratio']
        floor = self.config.get(f'min_{self.word}') or 0.0
        if floor and self.base is None:
            raise CannotMigrate(
                f"min_{self.word} with these restarts needs the optimizer's "
                f'{self.word}, which this file does not know'
            )
        # Without a floor the ratio is 0. For a rate of 0 no ratio exists.
        if not floor or not self.base:
            return 0.0
        return floor / self.base

    def warm_up(self) -> None:
        """Add the schedulers of the warm-up, if there is one.

        Raises:
            CannotMigrate: If MMEngine has no counterpart.
        """
        kind = self.config.get('warmup')
        if kind is None:
            return
        if self.kind == 'Momentum':
            raise CannotMigrate(
                'warm-up of a momentum begins above it, and MMEngine has no '
                'scheduler that does'
            )
        # The defaults are those of mmcv's LrUpdaterHook.
        length = self.keep('warmup_iters', 0)
        ratio = self.keep('warmup_ratio', 0.1)
        clock: ConfigDict = dict(by_epoch=False)
        # mmcv reaches the full rate in the iteration after the warm-up,
        # MMEngine reaches it in the last iteration of a scheduler.
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
            # MMEngine has no exponential growth from a ratio: a constant
            # lowers the rate, and a decay with a gamma above 1 raises it.
            growth = self.config.get('warmup_ratio', 0.1) ** (-1 / (end - 1))
            self.add('Constant', factor=ratio, end=FOREVER, **clock)
            self.add('Exponential', gamma=growth, begin=0, end=end, **clock)
        else:
            raise CannotMigrate(f'warmup={kind!r} is none of mmcv')
