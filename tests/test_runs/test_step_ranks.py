"""A step that spoils the weights of one rank is undone on all ranks."""

import json

from ranks import launch, needs_fsdp


def check(work_dir, *ways):
    launch('step_job.py', work_dir, *ways)
    for rank in range(2):
        cells = json.loads((work_dir / f'rank_{rank}.json').read_text())
        assert len(cells) == 2 * len(ways)
        for name, cell in cells.items():
            struck = int(name[-1])
            assert cell['differing'] == [], name
            assert cell['events'] == [
                [2, 'step_nonfinite', [struck]],
                [5, 'step_nonfinite', [struck]],
            ], name


def test_ddp(tmp_path):
    check(tmp_path, 'ddp')


@needs_fsdp
def test_shards(tmp_path):
    check(tmp_path, 'flat', 'dtensors')
