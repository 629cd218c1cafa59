"""Every config that mmpretrain ships is guarded, or refused with a reason."""

import re

import pytest
from beside_mmpretrain import needs_mmpretrain, run_job

pytestmark = needs_mmpretrain

# What becomes of mmpretrain 1.2.0's, and of how many.
OUTCOMES = {
    'guarded, on its own model': 461,
    # What their models take is not here: transformers, a download.
    'guarded, on a stand-in': 28,
    'refused: the config has no optim_wrapper, .* does not train': 41,
    'refused: the config has no optim_wrapper, .* as in 1.x': 1,
    'guarded, with DeepSpeed': 3,
    # Before anything here sees them.
    'MMEngine: ModuleNotFoundError: mmdet is not installed': 2,
    "MMEngine: KeyError: 'test_pipeline'": 2,
}


@pytest.fixture(scope='module')
def job_result():
    return run_job('test_configs/mmpretrain_configs_job.py')


def test_each_is_guarded_or_refused_with_a_reason(job_result):
    outcomes = job_result['outcomes']
    print(f'\n{sum(map(len, outcomes.values()))} configs:')
    for outcome, configs in sorted(outcomes.items()):
        print(f'{len(configs):4d}  {outcome}, such as {configs[0]}')
    num_settings = job_result['num_settings']
    print(f'{num_settings} different optim_wrapper settings were built')

    counts = dict.fromkeys(OUTCOMES, 0)
    for outcome, configs in outcomes.items():
        (like,) = (
            pattern for pattern in OUTCOMES if re.match(pattern, outcome)
        )
        counts[like] += len(configs)
    assert counts == OUTCOMES
