"""A monitored run of the score card, and what came of it."""

import json
import logging
import math
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import List, Optional

import torch
from mmengine.runner import Runner

import mmnanguard  # noqa: F401  (registers)
from mmnanguard.core import TrainingHalted

from . import nets
from .families import FAMILIES

# The share of right answers above which a run has learnt.
LEARNT = 0.3
NOTHING = 'learns nothing'
NUM_LAST = 20


@dataclass
class Outcome:
    """The end of a run, and its alerts.

    Attributes:
        alerts: The rows of alerts, oldest first.
        bad: The iteration of the first loss that was not finite, of the third
            rejected update in a row or of a divergence; the last iteration if
            nothing was learnt; None if the run was fine.
        how: How it went bad.
        accuracy: The share of right answers at the end, of the whole data.
        loss: The median of the last losses.
        overflowed: The module that overflowed first, if any did.
        overflow: The iteration in which it did.
        lost: Number of rejected updates, by cause.
    """

    alerts: List[dict] = field(default_factory=list)
    bad: Optional[int] = None
    how: str = ''
    accuracy: float = math.nan
    loss: float = math.nan
    overflowed: str = ''
    overflow: Optional[int] = None
    lost: Counter = field(default_factory=Counter)

    @property
    def is_warned(self):
        """Whether an alert came before the trouble."""
        early = [a['iter'] for a in self.alerts if a['cleared'] is None]
        return self.bad is not None and bool(early) and early[0] < self.bad

    @property
    def lead(self):
        """Iterations from the first alert to the trouble; None if a run has
        no alert, or no moment at which it went bad.
        """
        if not self.is_warned or self.how == NOTHING:
            return None
        return self.bad - self.alerts[0]['iter']


class FirstOverflow:
    """Notes the first module whose float16 output is not finite."""

    def __init__(self, model):
        self.model = model
        self.module, self.iter = '', None
        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(self.note(name))

    def note(self, name):
        def hook(module, args, output):
            if self.iter is not None or not isinstance(output, torch.Tensor):
                return
            if output.dtype == torch.float16 and not output.isfinite().all():
                self.module = name
                self.iter = self.model.num_iters + 1

        return hook


def run(name, **changes):
    """Run a family by its name; keywords replace parts of its setup."""
    family = FAMILIES[name]
    setup = {**family.setup, **changes}
    folder = Path(tempfile.mkdtemp())
    seed = setup.get('seed', 0)
    torch.manual_seed(seed)
    net = family.net()
    if 'prepare' in setup:
        setup['prepare'](net)
    model = nets.Classifier(
        net,
        setup.get('loss', 'cross_entropy'),
        setup.get('reward', 0.0),
        setup.get('spoil'),
    )
    runner = build(folder, model, family.optimizer, setup, seed)
    first = FirstOverflow(model)
    with suppress(TrainingHalted):
        runner.train()
    outcome = judge(runner, model, rows_in(folder), setup.get('size'))
    outcome.overflowed, outcome.overflow = first.module, first.iter
    shutil.rmtree(folder)
    return outcome


def build(folder, model, optimizer, setup, seed):
    kind = 'NanGuardOptimWrapper'
    wrapper = dict(
        optimizer=optimizer,
        accumulative_counts=setup.get('accumulative_counts', 1),
        clip_grad=setup.get('clip_grad'),
    )
    if 'dtype' in setup:
        kind = 'NanGuardAmpOptimWrapper'
        wrapper['dtype'] = setup['dtype']
    if setup.get('dtype') == 'float16':
        wrapper['loss_scale'] = setup.get('loss_scale', 'dynamic')
    # The rule of the guard, as a judge of what is bad.
    wrapper['guard'] = dict(divergence=dict(), max_skip_rate=None)
    return Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=nets.Digits(setup.get('size')),
            batch_size=32,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        optim_wrapper=dict(type=f'mmnanguard.{kind}', **wrapper),
        train_cfg=dict(
            type='IterBasedTrainLoop', max_iters=setup.get('num_iters', 400)
        ),
        param_scheduler=setup.get('schedule'),
        default_hooks=dict(
            nan_guard=dict(type='mmnanguard.NanGuardHook'),
            event_log=dict(type='mmnanguard.EventLogHook'),
            checkpoint=None,
            logger=dict(type='LoggerHook', interval=10000),
            stability=dict(
                type='mmnanguard.StabilityMonitorHook',
                **setup.get('monitor', {}),
            ),
            **setup.get('hooks', {}),
        ),
        randomness=dict(seed=seed),
        experiment_name=folder.name,
        log_level='CRITICAL',
        default_scope='mmengine',
    )


def rows_in(folder):
    rows = []
    for path in folder.glob('*/nanguard/events.jsonl'):
        rows += map(json.loads, path.read_text().splitlines())
    return rows


def judge(runner, model, rows, size):
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    last = [loss for loss in losses[-NUM_LAST:] if math.isfinite(loss)]
    outcome = Outcome(loss=median(last) if last else math.nan)
    outcome.alerts = [row for row in rows if row['kind'] == 'alert']
    updates = [row for row in rows if row['kind'] == 'update']
    rejected = [row for row in updates if row['action'] != 'step']
    outcome.lost = Counter(row['cause'] for row in rejected)
    # A single overflow of gradients is one of the loss scale.
    counted = [
        row
        for row in rejected
        if row['cause'] == 'loss_nonfinite' or row['consecutive_skips'] > 2
    ]
    model.eval()
    with torch.no_grad():
        images = nets.Digits(size).images
        right = model.net(images).argmax(1) == nets.LABELS
    outcome.accuracy = right.float().mean().item()
    if counted:
        outcome.bad, outcome.how = counted[0]['iter'], counted[0]['cause']
    elif outcome.accuracy < LEARNT:
        outcome.bad, outcome.how = len(losses), NOTHING
    return outcome


def headroom_alerts(outcome):
    """Return the alerts with a countdown before the first overflow."""
    return [
        alert
        for alert in outcome.alerts
        if alert['rule'] == 'headroom'
        and alert['cleared'] is None
        and outcome.overflow is not None
        and alert['iter'] < outcome.overflow
    ]


def silence():
    """Keep PyTorch and MMEngine from writing to the terminal."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
