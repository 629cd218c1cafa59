"""The last committed updates, and the trends that they show.

``GuardState.recent_commits`` holds them. The functions take any sequence of
commits, oldest first, and run only when there is something to explain.
"""

import math
from operator import itemgetter
from statistics import median_low
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from .growth_of_series import (
    LEAST_BEFORE,
    LEAST_GROWTH,
    finite_sizes,
    growth_of,
    is_at_lowest,
    is_falling,
)
from .usual_norm import usual_norm

__all__ = [
    'NUM_RECENT_COMMITS',
    'NUM_SHOWN',
    'Commit',
    'Growth',
    'commits_from_dict',
    'commits_to_dict',
    'find_early_end',
    'find_growth',
    'find_growth_of_norms',
]

NUM_RECENT_COMMITS = 64
# Of the last quarter of a record over its first quarter.
LEAST_GROWTH_OF_RECORD = 1e4
# A jump out of norms that swing a little is no explosion of the run.
LEAST_BEFORE_JUMP = 2
LEAST_JUMP = 1e4
MOST_SWING = 4.0
LOW = -1e6  # a loss that few bounded losses reach
NUM_SHOWN = 4  # commits in the words on a growth
MOST_EARLY = 3  # commits of a run that ended early
LEAST_SKIPS = 3  # rejected updates that follow them


class Commit(NamedTuple):
    """The numbers of one committed update, all known on the host.

    Attributes:
        update: The number of the update among all judged updates, from 1.
        loss: The loss of the window, as in ``Observation.loss``; NaN if the
            wrapper saw no backward pass.
        grad_norm: L2 norm of the gradients, unscaled, before clipping.
        lr: The highest learning rate of all parameter groups in the step,
            with the guard's factor; NaN if it is on a device only.
        loss_scale: The loss scale of the gradients; 1 without a scaler.
        clip_coef: The factor of the clip rule, in (0, 1].
    """

    update: int
    loss: float = math.nan
    grad_norm: float = math.nan
    lr: float = math.nan
    loss_scale: float = 1.0
    clip_coef: float = 1.0


class Growth(NamedTuple):
    """A rise of losses and norms right up to the last commit.

    Attributes:
        losses: The losses of the last commits, oldest first.
        grad_norms: Their gradient norms.
        lr: The learning rate of the last commit; NaN if it is not known.
        factor: The growth of the series that grew most; 0 if the run ended
            with its first commits, which is too early to see any growth.
        usual_norm: The median norm of the commits before the explosion; NaN
            if there are too few of them, or if their norms grow as well.
        clip_coef: The lowest factor of the clip rule in the record; 1 if
            nothing was clipped.
    """

    losses: Tuple[float, ...]
    grad_norms: Tuple[float, ...]
    lr: float
    factor: float
    usual_norm: float = math.nan
    clip_coef: float = 1.0

    @property
    def is_uphill(self) -> bool:
        """Whether the learning rate is negative, so that the loss rises."""
        return self.lr < 0

    @property
    def is_bottomless(self) -> bool:
        """Whether the loss fell below 0 faster and faster, or very far.

        The loss of a critic, a contrastive loss or the log of a density may
        have no lower bound. A density may well bring a loss to -1e3.
        """
        losses = [loss for loss in self.losses if math.isfinite(loss)]
        if len(losses) < LEAST_BEFORE or losses[-1] > min(losses[-2], 0.0):
            return False
        first, last = losses[0], losses[-1]
        is_faster = is_falling(losses) and first - last >= LEAST_GROWTH * abs(
            first - losses[1]
        )
        return last < LOW or (is_faster and last < -LEAST_GROWTH)

    @property
    def jump(self) -> float:
        """The gradient norm of one batch that is far out of line, or 0.

        Until then nothing had grown, which a learning rate that is too high
        would have caused.
        """
        norms = finite_sizes(self.grad_norms)
        for position in range(LEAST_BEFORE_JUMP, len(norms)):
            highest = max(norms[:position])
            is_even = highest <= MOST_SWING * self.usual_norm
            if is_even and norms[position] >= LEAST_JUMP * highest > 0:
                return norms[position]
        return 0.0

    def words(self) -> str:
        """Return the numbers, such as 'loss 1 -> 20, gradient norm 3 -> 90'.

        A series without any finite value is left out.
        """
        parts = []
        for name, values in (
            ('loss', self.losses),
            ('gradient norm', self.grad_norms),
        ):
            if any(map(math.isfinite, values)):
                numbers = ' -> '.join(map('{:.3g}'.format, values))
                parts.append(f'{name} {numbers}')
        return ', '.join(parts)


def find_growth(
    commits: Sequence[Commit],
    loss: float = math.nan,
    grad_norm: float = math.nan,
) -> Optional[Growth]:
    """Return the growth before a fault, or None if nothing exploded.

    Losses (their absolute values) or norms have to rise at the end of the
    record: tenfold in at least two steps or a hundredfold in one, above
    all values before; or the last two are ten times the usual value. The
    other series must not be at its lowest. Without two finite values nothing
    is known, and None is returned.

    An exploded run may commit now and then between many rejections. If the
    record does not end with a growth, it is searched up to the trouble. A
    slow explosion shows in the record as a whole.

    Args:
        commits: The commits, oldest first.
        loss: The loss of the update at fault; counted if finite.
        grad_norm: Its gradient norm; counted if finite.
    """
    rows = list(commits)
    if math.isfinite(loss) or math.isfinite(grad_norm):
        rows.append(Commit(0, loss, grad_norm))
    sound = before_trouble(commits)
    return (
        growth_at_end(rows, commits)
        or growth_at_end(sound, sound)
        or growth_of_record(commits)
    )


def growth_at_end(
    rows: Sequence[Commit], commits: Sequence[Commit]
) -> Optional[Growth]:
    """Return the growth that ends with the last row, or None.

    Args:
        rows: The commits, oldest first, and maybe the update at fault.
        commits: The commits alone.
    """
    losses = finite_sizes([commit.loss for commit in rows])
    norms = finite_sizes([commit.grad_norm for commit in rows])
    factor = 0.0
    # Norms grow while a zero-initialized head learns, and the loss of an
    # adversarial game may grow while norms fall: both are healthy.
    if not is_at_lowest(norms):
        factor = growth_of(losses)
    if not is_at_lowest(losses) and not is_falling(losses[-NUM_SHOWN:]):
        factor = max(factor, growth_of(norms))
    if factor == 0:
        return None
    return show_growth(rows[-NUM_SHOWN:], commits, factor)


def growth_of_record(commits: Sequence[Commit]) -> Optional[Growth]:
    """Return the growth from the first to the last quarter of a record.

    Single batches may have any loss in a run that has exploded, such as 0 if
    the net is dead for them.
    """
    num = len(commits) // NUM_SHOWN
    losses = finite_sizes([commit.loss for commit in commits])
    if num < LEAST_BEFORE or len(losses) < len(commits):
        return None
    base, level = median_low(losses[:num]), median_low(losses[-num:])
    if base == 0 or level < LEAST_GROWTH_OF_RECORD * base:
        return None
    # One of each quarter.
    shown = commits[num - 1 :: num][:NUM_SHOWN]
    return show_growth(shown, commits, level / base)


def show_growth(
    shown: Sequence[Commit], commits: Sequence[Commit], factor: float
) -> Growth:
    """Return the growth of a record, shown by some of its commits."""
    norms = finite_sizes([commit.grad_norm for commit in commits])
    return Growth(
        tuple([commit.loss for commit in shown]),
        tuple([commit.grad_norm for commit in shown]),
        commits[-1].lr,
        factor,
        usual_norm(norms),
        min([commit.clip_coef for commit in commits]),
    )


def before_trouble(commits: Sequence[Commit]) -> Sequence[Commit]:
    """Return the commits up to the trouble that the record ends with.

    Its last commits are a part of the trouble if more updates were rejected
    right before them, or if their losses and gradients are 0.

    Args:
        commits: The commits, oldest first.
    """
    end = start = len(commits)
    while start > 1:
        start -= 1
        last = commits[start]
        num_skips = last.update - commits[start - 1].update - 1
        num_commits = end - start
        is_dead = num_commits == 1 and last.loss == last.grad_norm == 0
        if num_skips > num_commits or is_dead:
            end = start
    return commits[:end]


def find_growth_of_norms(
    commits: Sequence[Commit], grad_norm: float
) -> Optional[Growth]:
    """Return the growth of the gradient norms, whatever the losses do.

    Args:
        commits: The commits, oldest first.
        grad_norm: The norm of the present update; counted if finite.
    """
    norms = []
    for commit in commits:
        norms.append(commit._replace(loss=math.nan))
    return find_growth(norms, grad_norm=grad_norm)


def find_early_end(
    commits: Sequence[Commit],
    num_commits: int,
    num_skips: int,
    num_routine: int = 0,
) -> Optional[Growth]:
    """Return the first commits of a run, if nothing could follow them.

    A batch that was fine before the first steps, and no batch that is fine
    after them: the steps themselves are the suspects.

    Args:
        commits: The commits, oldest first.
        num_commits: Number of commits of the whole run.
        num_skips: Number of rejected updates since the last commit.
        num_routine: Number of routine overflows of the run.
    """
    is_early = 0 < num_commits <= MOST_EARLY and len(commits) == num_commits
    if not is_early or num_skips < LEAST_SKIPS:
        return None
    # Batches that went bad before any step had another reason, unless a new
    # loss scale explains all of them and was low enough then.
    num_before = commits[0].update - 1
    if num_before > 0 and num_before != num_routine:
        return None
    return Growth(
        tuple([commit.loss for commit in commits]),
        tuple([commit.grad_norm for commit in commits]),
        commits[-1].lr,
        0.0,
        # The first steps are the suspects, so that no norm is usual.
        math.nan,
        min([commit.clip_coef for commit in commits]),
    )


def commits_to_dict(
    commits: Sequence[Commit],
) -> Dict[str, List[Optional[float]]]:
    """Return a list of values for each field of a commit; None for NaN."""
    columns: Dict[str, List[Optional[float]]] = {}
    for index, name in enumerate(Commit._fields):
        columns[name] = list(
            map(finite_or_none, map(itemgetter(index), commits))
        )
    return columns


def finite_or_none(value: float) -> Optional[float]:
    """Return a finite value, and None in place of any other."""
    # JSON has no NaN, and states must be comparable.
    return value if math.isfinite(value) else None


def commits_from_dict(saved: Mapping[str, Any]) -> Tuple[Commit, ...]:
    """Return the commits that :func:`commits_to_dict` saved.

    A field that the saved version did not know gets its default.
    """
    known = {}
    for name in Commit._fields:
        if name in saved:
            known[name] = saved[name]
    commits = []
    for values in zip(*known.values()):
        commit = Commit(0)
        for name, value in zip(known, values):
            if value is None:
                value = math.nan
            commit = commit._replace(**{name: value})
        commits.append(commit)
    return tuple(commits)
