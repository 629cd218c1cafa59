"""A resumed run trains at other rates than its checkpoint has."""

import pytest
import torch
from mmengine.hooks import Hook
from toys import guard_hooks, make_runner, wrapper

from mmnanguard.core import GuardConfigError
from mmnanguard.hooks import LrFactorHook

SCHEDULES = {
    'none': None,
    'warm-up': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
        dict(type='MultiStepLR', by_epoch=False, milestones=[7], gamma=0.1),
    ],
    'cosine': [
        dict(type='CosineAnnealingLR', by_epoch=False, T_max=9, eta_min=0.01)
    ],
    'ratio': [
        dict(
            type='CosineAnnealingLR',
            by_epoch=False,
            T_max=9,
            eta_min_ratio=0.1,
        )
    ],
    'poly': [dict(type='PolyLR', by_epoch=False, eta_min=0.01, end=9)],
    'restarts': [
        dict(
            type='CosineRestartLR',
            by_epoch=False,
            periods=[3, 6],
            restart_weights=[1, 0.5],
            eta_min=0.01,
        )
    ],
    'one cycle': [
        dict(type='OneCycleLR', by_epoch=False, total_steps=12, eta_max=0.3)
    ],
    'momentum': [
        dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, end=6)
    ],
}


class Rates(Hook):
    """Record rates and momentum of each iteration."""

    def __init__(self):
        self.rates, self.momenta = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for group in runner.optim_wrapper.param_groups:
            self.rates.append(float(group['lr']))
            self.momenta.append(group['momentum'])


def train(work_dir, schedule, factor=None, max_iters=10, **keys):
    rates = Rates()
    save = dict(type='CheckpointHook', by_epoch=False, interval=4)
    hooks = dict(guard_hooks(), checkpoint=save)
    if factor is not None:
        hooks['lr'] = dict(type='mmnanguard.LrFactorHook', factor=factor)
    optim = wrapper(
        'NanGuardOptimWrapper',
        paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=3)}),
    )
    runner = make_runner(
        work_dir,
        optim,
        param_scheduler=schedule,
        default_hooks=hooks,
        custom_hooks=[rates],
        max_iters=max_iters,
        **keys,
    )
    runner.train()
    return rates


def resumed(path):
    return dict(resume=True, load_from=str(path))


@pytest.mark.parametrize('schedule', SCHEDULES.values(), ids=SCHEDULES)
def test_the_rest_of_the_schedule_is_scaled(tmp_path, schedule):
    whole = train(tmp_path / 'whole', schedule)
    num = len(whole.rates) // 10
    path = tmp_path / 'whole' / 'iter_4.pth'
    rest = train(tmp_path / 'rest', schedule, 0.5, **resumed(path))
    assert rest.rates == pytest.approx(
        [rate * 0.5 for rate in whole.rates[4 * num :]]
    )
    assert rest.momenta == whole.momenta[4 * num :]
    # Once more, and without the hook: nothing is multiplied again.
    again = tmp_path / 'rest' / 'iter_8.pth'
    for factor in (0.5, None):
        last = train(
            tmp_path / f'{factor}', schedule, factor, **resumed(again)
        )
        assert last.rates == pytest.approx(rest.rates[4 * num :])
    # The factor is that on the config.
    lower = train(tmp_path / 'lower', schedule, 0.25, **resumed(again))
    assert lower.rates == pytest.approx(
        [rate * 0.25 for rate in whole.rates[8 * num :]]
    )
    fresh = train(tmp_path / 'fresh', schedule, 0.5)
    assert fresh.rates == pytest.approx([rate * 0.5 for rate in whole.rates])


def test_a_rate_that_is_a_tensor(tmp_path):
    shared = torch.tensor(0.1)
    runner = make_runner(tmp_path, wrapper())
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for group in runner.optim_wrapper.param_groups:
        group['lr'] = shared
    LrFactorHook(0.5).before_train(runner)
    for group in runner.optim_wrapper.param_groups:
        assert float(group['lr']) == pytest.approx(0.05)


@pytest.mark.parametrize('factor', [0, -1, float('nan'), float('inf'), '1'])
def test_a_factor_that_is_not_allowed(factor):
    with pytest.raises(GuardConfigError, match=r'LrFactorHook\.factor'):
        LrFactorHook(factor)
