"""The recommended steps for a run that no bad update has made sick.

Such a run crashed, was killed or interrupted, was not guarded, or exploded
while all its numbers stayed finite.
"""

from typing import List, Tuple

from mmnanguard.core.growth_advice import BOUND_THE_LOSS, NO_LOWER_BOUND
from mmnanguard.core.how_to_guard import has_guarded_form, how_to_guard
from mmnanguard.core.rows.phrases import samples_in_words

from .loss_rise import Rise
from .recommendations import Step, next_steps
from .summary import Summary

__all__ = ['explosion_step', 'steps_for_end']


def steps_for_end(summary: Summary) -> Tuple[Step, ...]:
    """Return the recommended steps, the most helpful first."""
    steps = []
    if summary.loaded_bad:
        steps.append(loaded_step(summary))
    if not summary.is_over and (summary.end or summary.is_lost):
        steps.extend(bad_number_steps(summary))
        steps.append(resume_step(summary))
    if summary.log_rise is not None:
        steps.append(explosion_step(summary.log_rise))
    if summary.unguarded:
        steps.append(guard_step(summary))
    for row in summary.bypasses:
        if not row.is_guarded:
            text = 'let the guarded wrapper make each step'
            steps.append(Step(text, row.advice))
    return (*steps, *next_steps(summary))


def loaded_step(summary: Summary) -> Step:
    """Return the step for a checkpoint that held NaN or Inf."""
    detail = (
        'No update repairs them, and each checkpoint since has them as well. '
        'Resume from a checkpoint that is clean: python -m mmnanguard '
        'scan_checkpoints WORK_DIR lists them.'
    )
    if all(name.endswith('(optimizer)') for name in summary.loaded_bad):
        return Step(
            "load the weights without the optimizer's state",
            f'{detail} Or begin with the weights alone: '
            'load_from=CHECKPOINT, resume=False.',
        )
    return Step('resume from a clean checkpoint', detail)


def bad_number_steps(summary: Summary) -> List[Step]:
    """Return the steps on bad numbers in an iteration that crashed."""
    end = summary.end
    if end is None:
        return []
    if end.bad_params:
        return [
            Step(
                'resume from a clean checkpoint',
                'A parameter was not finite when the iteration crashed: '
                'python -m mmnanguard scan_checkpoints WORK_DIR lists the '
                'checkpoints that are clean.',
            )
        ]
    if not end.bad_inputs:
        return []
    keys = ', '.join(map(repr, end.bad_inputs))
    whose = ''
    if end.samples:
        whose = f' of {samples_in_words(end.samples)}'
    return [
        Step(
            f'look at {keys}{whose} first',
            f'{keys}{whose} was not finite when the iteration crashed: mend '
            'it or leave it out (mmnanguard.ExcludeSamples), unless the '
            'model masks such numbers on purpose.',
        )
    ]


def resume_step(summary: Summary) -> Step:
    """Return the step that goes on with a run that has ended early."""
    resume = summary.launch.train('--resume')
    if summary.is_lost:
        return Step(
            'look for what killed it, and resume it',
            'The process is gone and left no row: a signal (scheduler, lack '
            'of memory) or a crash of the machine.',
            resume,
        )
    return Step(
        'resume it once the reason is repaired',
        'The traceback is on the console of the run, not in its events.',
        resume,
    )


def explosion_step(rise: Rise) -> Step:
    """Return the step for a loss that rose or fell far, and is finite."""
    if rise.end < min(rise.begin, 0.0):
        detail = 'The losses are finite, so that no update was rejected.'
        return Step(BOUND_THE_LOSS, f'{detail} {NO_LOWER_BOUND}')
    before = 'its rise'
    if rise.since is not None:
        before = f'iteration {rise.since:,}'
    return Step(
        f'look at the curves before {before}',
        'The losses are finite, so that no update was rejected for them. If '
        'the gradient norm grew with the loss, lower the learning rate or the '
        'weight of the loss that grew (weight decay is one), lengthen '
        'warm-up, or set optim_wrapper.clip_grad=dict(max_norm=1). If one '
        'norm jumped, look at the samples of that batch, and clip. If both '
        'were huge from the start, normalize the inputs. Then begin anew, or '
        'from a checkpoint written before.',
    )


def guard_step(summary: Summary) -> Step:
    """Return the step that guards a run."""
    for kind in summary.unguarded.values():
        if not has_guarded_form(kind):
            text = 'train with a wrapper that has a guard'
            return Step(text, how_to_guard([kind]))
    return Step(
        'guard it, and go on from a clean checkpoint',
        'The guarded wrapper has to run the optimizer. An option such as '
        '--amp of other tools puts another wrapper in its place.',
        summary.launch.train('--guard', 'full', '--resume'),
    )
