import pytest
from mmengine.config import Config

from mmnanguard.hooks import Fp32ModulesHook
from mmnanguard.hooks.replay.replay_config import hooks_inside

LAZY = """
from mmnanguard.hooks import Fp32ModulesHook, NanGuardHook
default_hooks = dict(guard=dict(type=NanGuardHook), none=None)
custom_hooks = [dict(type=Fp32ModulesHook)]
"""
PLAIN = """
default_hooks = dict(guard=dict(type='mmnanguard.NanGuardHook'), none=None)
custom_hooks = [dict(type='mmnanguard.Fp32ModulesHook')]
"""


@pytest.mark.parametrize('text', [LAZY, PLAIN])
def test_hooks_that_change_a_pass_are_found(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    ((hook, _),) = hooks_inside(Config.fromfile(path))
    assert hook is Fp32ModulesHook
