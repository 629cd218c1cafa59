"""A run that exploded trains once the user follows the advice."""

import re

import pytest

from field.all_scenarios import SCENARIOS
from field.sides import run, run_all

EXPLODING = [
    'NoWarmUp',
    'RateOfEightGpus',
    'RecurrentUnclipped',
    'UnscaledSensors',
]


@pytest.mark.parametrize('name', EXPLODING)
def test_the_advice_on_an_explosion_helps(name, tmp_path, monkeypatch):
    first = run_all(name)['guarded']
    assert first.is_halted
    scenario = SCENARIOS[name]
    # Word by word: a lower learning rate, and the norm that is given.
    max_norm = float(re.findall(r'max_norm=([\d.e+-]+)\)', first.story)[0])
    clip = dict(clip_grad=dict(max_norm=max_norm))
    lower = dict(scenario.optimizer, lr=0.1 * scenario.optimizer['lr'])
    monkeypatch.setattr(type(scenario), 'wrapper', clip)
    monkeypatch.setattr(type(scenario), 'optimizer', lower)
    followed = run(scenario, 'guarded', str(tmp_path))
    assert followed.error is None
    assert followed.end < followed.start
