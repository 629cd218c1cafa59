"""Every config that mmpretrain ships is guarded, or refused with a reason."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = Path(sys.prefix) / 'mmpretrain'
TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not PACKAGES.is_dir(),
    reason=f'needs requirements/mmpretrain.txt in {PACKAGES}',
)

# What becomes of mmpretrain 1.2.0's, and of how many.
OUTCOMES = {
    'guarded, on its own model': 461,
    # What their models take is not here: transformers, a download.
    'guarded, on a stand-in': 28,
    'refused: the config has no optim_wrapper, .* does not train': 41,
    'refused: the config has no optim_wrapper, .* as in 1.x': 1,
    'refused: optim_wrapper.type is DeepSpeedOptimWrapper': 3,
    # Before anything here sees them.
    'MMEngine: ModuleNotFoundError: mmdet is not installed': 2,
    "MMEngine: KeyError: 'test_pipeline'": 2,
}


@pytest.fixture(scope='module')
def told():
    path = (TESTS / 'mmpretrain_env', PACKAGES, TESTS.parent)
    done = subprocess.run(
        [sys.executable, TESTS / 'test_configs' / 'mmpretrain_configs_job.py'],
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(map(str, path)),
            'PYTHONWARNINGS': 'ignore',
            'OMP_NUM_THREADS': '1',
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_each_is_guarded_or_refused_with_a_reason(told):
    outcomes = told['outcomes']
    print(f'\n{sum(map(len, outcomes.values()))} configs:')
    for outcome, configs in sorted(outcomes.items()):
        print(f'{len(configs):4d}  {outcome}, such as {configs[0]}')
    print(
        f'{told["num_settings"]} different optim_wrapper settings were built'
    )

    found = dict.fromkeys(OUTCOMES, 0)
    for outcome, configs in outcomes.items():
        (like,) = (one for one in OUTCOMES if re.match(one, outcome))
        found[like] += len(configs)
    assert found == OUTCOMES
