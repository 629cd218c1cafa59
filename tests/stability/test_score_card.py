"""A few runs of the score card, one of each family; score.py runs them all."""

import re
from pathlib import Path

import pytest

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from stability.families import FAMILIES, HEALTHY, UNPREDICTABLE
from stability.runs import headroom_alerts, run

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not HAS_CPU_SCALER, reason='no float16 on this CPU'),
    pytest.mark.filterwarnings('ignore'),
]


def rules_of(outcome):
    return {alert['rule'] for alert in outcome.alerts}


@pytest.mark.parametrize('name', ['cnn', 'mlp-fp16', 'other-mlp'])
def test_a_healthy_run_has_no_alert(name):
    outcome = run(name, num_iters=150)
    assert outcome.alerts == []
    assert outcome.bad is None


@pytest.mark.parametrize(
    ('name', 'rule'),
    [
        ('lr-cnn', 'update_ratio'),
        ('lr-mlp-adam', 'update_ratio'),
        ('logits-fused', 'attention_logits'),
        ('scale-mlp', 'underflow'),
    ],
)
def test_a_run_that_goes_bad_is_warned_of(name, rule):
    assert rule in rules_of(run(name, num_iters=100))


def test_a_countdown_names_the_module_that_overflows_first():
    outcome = run('growth-mlp-fast', num_iters=250)
    alert = headroom_alerts(outcome)[0]
    assert alert['module'] == outcome.overflowed
    left = outcome.overflow - alert['iter']
    assert left / 3 <= alert['left'] <= 3 * left


def test_a_bad_batch_comes_without_a_warning():
    outcome = run('batch-nan', num_iters=170)
    assert outcome.bad == 151
    assert outcome.lead is None


def test_there_are_runs_of_each_kind():
    kinds = [family.kind for family in FAMILIES.values()]
    assert kinds.count(HEALTHY) >= 30
    num_bad = len(kinds) - kinds.count(HEALTHY) - kinds.count(UNPREDICTABLE)
    assert num_bad >= 30
    for is_seen in (True, False):
        seen = {f.kind for f in FAMILIES.values() if f.is_seen is is_seen}
        assert len(seen) >= 6


@pytest.mark.parametrize('readme', ['README.md', 'README_zh-CN.md'])
def test_the_readme_has_the_score(readme):
    text = (ROOT / readme).read_text()
    (score,) = re.findall(
        '<!-- stability -->(.*?)<!-- /stability -->', text, re.S
    )
    assert 'tests/stability/score.py' in score
