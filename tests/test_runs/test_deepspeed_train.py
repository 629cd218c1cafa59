"""A config in the form of xtuner's, guarded from the command line."""

import json
from pathlib import Path

import pytest
from ranks import launch, needs_deepspeed

pytestmark = needs_deepspeed
CONFIG = Path(__file__).with_name('deepspeed_chat_config.py')


@pytest.mark.parametrize('guard', ['bf16', 'full'])
def test_a_chat_model_with_lora_is_guarded(tmp_path, guard):
    dtype = 'bfloat16' if guard == 'bf16' else 'float16'
    command = ['train', CONFIG, '--guard', guard, '--work-dir', tmp_path]
    command += ['--cfg-options', f'model.dtype={dtype}']
    launch('deepspeed_train_job.py', *command)
    (path,) = tmp_path.glob('*/nanguard/events.jsonl')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # Eight micro-batches, two to an update.
    updates = [row for row in rows if row['kind'] == 'update']
    (update,) = [row for row in updates if row['action'] == 'skip']
    assert update['iter'] == 6
    assert update['cause'] == 'loss_nonfinite'
    assert update['lr'][0] > 0
    start = rows[0]['guards']['default']
    assert start['num_tensors'] == 2
    assert start['clip'] == 'gradient_clipping=1 of DeepSpeed'
    assert rows[-1]['how'] == 'finished'
    assert (tmp_path / 'iter_8.pth').is_dir()
