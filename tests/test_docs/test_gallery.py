"""Console output in docs/en is what the command above it prints."""

import re

import pytest
from docs_shell import all_blocks, commands, run


def pairs():
    """Return each block of output with the commands before it in a section."""
    result, last = [], {}
    for block in all_blocks('bash', 'text'):
        where = block.page, block.section
        if block.language == 'bash':
            last[where] = block
        elif not block.mark:
            result.append((block, last.get(where)))
    return result


def masked(line):
    """Mask numbers except those of iterations; tables have any width."""
    line = re.sub(r'\b[0-9a-f]{8}\b', '#', line)
    line = re.sub(r'[━─]+', '━', line)
    number = r'(?<!Iter )(?<!Iter \d)\b\d+(\.\d+)?(e[+-]?\d+)?'
    return ' '.join(re.sub(f'-?{number}', '#', line).split())


@pytest.mark.parametrize(
    ('output', 'shell'), pairs(), ids=lambda block: str(block)
)
def test_output_is_as_shown(output, shell):
    assert shell is not None, 'no command above it, and no reason why'
    last = commands(shell.text)[-1]
    if 'work_dirs/tour_fp16' in last:
        run('python tools/train.py configs/digits/tour_fp16.py --guard full')
    printed = map(masked, run(last).splitlines())
    for line in map(masked, output.text.splitlines()):
        # In this order, others between them.
        assert line in printed, line


def test_whatever_is_not_run_says_why(capsys):
    marked = [b for b in all_blocks('bash', 'python', 'text') if b.mark]
    not_run = [block for block in marked if block.mark == 'not run']
    assert all(block.remark for block in marked)
    with capsys.disabled():
        print(f'\n{len(not_run)} blocks of the documentation are not run:')
        for block in not_run:
            print(f'  {block}: {block.remark}')
    assert len(not_run) <= 10
