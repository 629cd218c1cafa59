"""The comparison of a scenario's three runs."""

import math
import re
from collections import Counter
from functools import partial
from typing import Dict, List

import torch
from torch import Tensor

from mmnanguard.core.causes import facts_of_cause

from .scenario import Scenario
from .sides import Run

MOST = 1.1  # of the loss without a guard


def what_is_worse(scenario: Scenario, runs: Dict[str, Run]) -> List[str]:
    """Return why guarded runs break the second law; empty if they do not."""
    stock = runs['stock']
    problems = []
    for side in ('guarded', 'full'):
        run = runs[side]
        if run.is_halted:
            if scenario.must_train or not stock.is_lost:
                problems.append(f'{side}: halts: {run.story[:200]}')
        elif run.error is not None:
            problems.append(f'{side}: crashes: {run.error!r:.300}')
        if run.bad and not (run.is_halted and scenario.is_written_by_hook):
            problems.append(f'{side}: commits bad {run.bad[:3]}')
        # A run that halted has the weights of its last commit.
        if not run.is_halted and not ends_as_well(run, stock):
            problems.append(
                f'{side}: ends at {run.end:.4g}, without a guard '
                f'{stock.end:.4g}, at the start {stock.start:.4g}'
            )
        if not run.is_halted and run.end > scenario.must_reach:
            problems.append(
                f'{side}: ends at {run.end:.4g}, not {scenario.must_reach}'
            )
        if scenario.must_train and run.is_lost and not scenario.is_healthy:
            problems.append(f'{side}: learns nothing')
    return problems


def ends_as_well(run: Run, stock: Run) -> bool:
    """Whether a run ends as well as the one without a guard."""
    if stock.bad or math.isnan(stock.end):
        return math.isfinite(run.end)
    return run.end <= stock.end + (MOST - 1) * abs(stock.end)


def what_is_wrong(scenario: Scenario, runs: Dict[str, Run]) -> List[str]:
    """Return what is wrong in the words and causes of the guarded runs."""
    problems = []
    for side in ('guarded', 'full'):
        run = runs[side]
        if scenario.is_healthy:
            problems += what_disturbs(scenario, side, run, runs['stock'])
        problems += check_causes(scenario, side, run)
        problems += check_blame(scenario, side, run)
        says = scenario.says
        if side == 'full':
            says += scenario.says_in_full
        for pattern in says:
            if not re.search(pattern, run.text, re.I | re.S):
                problems.append(f'{side}: never says {pattern!r}')
        for pattern in scenario.never_says:
            match = re.search(pattern, run.text, re.I)
            if match:
                line = line_around(run.text, match)
                problems.append(f'{side}: says {pattern!r}: {line[:250]}')
    if not re.search(scenario.culprit, runs['full'].text, re.I | re.S):
        problems.append(f'full: never names {scenario.culprit!r}')
    return problems


def what_disturbs(
    scenario: Scenario, side: str, run: Run, stock: Run
) -> List[str]:
    """Return what the guard changed in a healthy run."""
    problems = []
    changed = []
    is_same = has_same_bits
    if 'clip_grad' in scenario.wrapper:
        # The factor of a norm is rounded differently.
        is_same = partial(torch.allclose, rtol=1e-4, atol=1e-6)
    for name, tensor in stock.state.items():
        if not is_same(tensor, run.state[name]):
            changed.append(name)
    if changed:
        problems.append(f'{side}: changes {changed[:3]}')
    warnings = [line for line in run.console if line not in stock.console]
    if scenario.may_warn:
        allowed = re.compile(scenario.may_warn)
        warnings = [line for line in warnings if not allowed.search(line)]
    if warnings:
        problems.append(f'{side}: warns: {warnings[0][:250]}')
    return problems


def has_same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same bits."""
    left, right = (x.flatten().contiguous() for x in (left, right))
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def check_causes(scenario: Scenario, side: str, run: Run) -> List[str]:
    """Compare the cause of most rejected updates with the right one."""
    causes: Counter = Counter()
    for row in run.rows:
        if row['kind'] != 'update' or row['action'] == 'step':
            continue
        if not facts_of_cause(row['cause']).is_routine:
            causes[row['cause']] += 1
    if not scenario.causes:
        return [f'{side}: rejects {dict(causes)}'] if causes else []
    if not causes:
        return [f'{side}: rejects nothing']
    most = causes.most_common(1)[0][0]
    if most not in scenario.causes:
        return [f'{side}: the cause is {dict(causes)}']
    return []


def check_blame(scenario: Scenario, side: str, run: Run) -> List[str]:
    """Return whether the report blames one sample that is innocent."""
    blamed = re.findall(
        r"(?:culprit|suspect): sample '(\d+)\.jpg'", run.advice
    )
    problems = []
    for number in sorted(set(blamed)):
        if scenario.is_good(int(number)):
            problems.append(f'{side}: blames the innocent {number}.jpg')
    return problems


def line_around(text: str, match: 're.Match[str]') -> str:
    """Return the line in which a match begins."""
    begin = text.rfind('\n', 0, match.start()) + 1
    return text[begin:].split('\n', 1)[0]
