"""QLoRA in xtuner's form without DeepSpeed, guarded from the command line."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmnanguard.numerics import load_plain
from mmnanguard.safe_load import allow_mmengine_checkpoints

CONFIG = Path(__file__).with_name('deepspeed_chat_config.py')


def tune(monkeypatch, work_dir, *options):
    """Run the documented command; return the rows of the run."""
    text, _, _ = CONFIG.read_text().partition('strategy = dict(')
    path = work_dir / 'chat.py'
    path.write_text(text.replace('ChatTuning', 'QuantizedChatTuning'))
    monkeypatch.syspath_prepend(str(CONFIG.parent))
    command = ['train', path, '--work-dir', work_dir, *options]
    monkeypatch.setattr(sys, 'argv', ['mmnanguard', *map(str, command)])
    # Another test may have imported it.
    monkeypatch.delitem(sys.modules, 'mmnanguard.__main__', raising=False)
    with pytest.raises(SystemExit, match='0'):
        runpy.run_module('mmnanguard', run_name='__main__')
    (path,) = work_dir.glob('*/nanguard/events.jsonl')
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler.step')
@pytest.mark.parametrize('guard', ['bf16', 'full'])
def test_qlora_is_guarded(tmp_path, monkeypatch, guard):
    options = ['--cfg-options', 'optim_wrapper.dtype=bfloat16']
    if guard == 'bf16':
        options = []
    rows = tune(monkeypatch, tmp_path, '--guard', guard, *options)
    # The range of bfloat16 needs no scale, whatever the config says.
    assert rows[0]['guards']['default']['loss_scale'] is None
    # Of sixteen micro-batches, two to an update, the eleventh is struck.
    updates = [row for row in rows if row['kind'] == 'update']
    seen = [(row['iter'], row['action'], row['cause']) for row in updates]
    assert seen == [(12, 'skip', 'loss_nonfinite')]
    assert rows[-1]['how'] == 'finished'
    allow_mmengine_checkpoints()
    tuned = load_plain(str(tmp_path / 'iter_16.pth'))['state_dict']
    adapter = tuned['layer.lora_b.weight']
    assert adapter.dtype == torch.float32
    assert bool(adapter.isfinite().all())
    assert tuned['layer.base.weight'].dtype == torch.uint8
