"""The tools, wherever the package is installed.

Example:
    python -m mmnanguard report work_dirs/my_run
    torchrun --nproc_per_node=8 -m mmnanguard train CONFIG --launcher pytorch
"""

import ast
import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / '.mim' / 'tools'
TOOLS = (
    'train',
    'report',
    'replay',
    'scan_checkpoints',
    'audit_dataset',
    'migrate_config',
    'fire_drill',
)


def usage() -> str:
    lines = ['usage: python -m mmnanguard TOOL ..., where TOOL is']
    for name in TOOLS:
        text = (FOLDER / f'{name}.py').read_text(encoding='utf-8')
        told = ast.get_docstring(ast.parse(text)) or ''
        first = ' '.join(told.split('\n\n')[0].split())
        lines.append(f'  {name}: {first.partition(". ")[0].rstrip(".:")}')
    return '\n'.join(lines)


def main() -> None:
    """Run it as its file, with all of its options.

    Exits with its status; with 2 and the list of tools without one.
    """
    name = sys.argv[1] if sys.argv[1:] else '--help'
    if name in ('-h', '--help'):
        print(usage())
        sys.exit(0 if sys.argv[1:] else 2)
    if name not in TOOLS:
        print(f'{name!r} is no tool.\n{usage()}', file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [str(FOLDER / f'{name}.py')]
    sys.path.insert(0, str(FOLDER))  # some import one another
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
