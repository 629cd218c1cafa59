"""The command line: runs a tool of the installed package.

Example:
    python -m mmnanguard report work_dirs/my_run
    torchrun --nproc_per_node=8 -m mmnanguard train CONFIG --launcher pytorch
"""

import ast
import runpy
import sys
from pathlib import Path

from ._tool_parser import ToolParser
from .core.checks import did_you_mean
from .version import __version__

FOLDER = Path(__file__).parent / '.mim' / 'tools'
TOOLS = (
    'doctor',
    'train',
    'report',
    'replay',
    'scan_checkpoints',
    'audit_dataset',
    'migrate_config',
    'fire_drill',
)


def usage() -> str:
    """Return the list of tools with the first sentence of each docstring."""
    lines = ['usage: python -m mmnanguard TOOL ..., where TOOL is']
    for name in TOOLS:
        # Parsed and not imported: a tool may need what is not installed.
        text = (FOLDER / f'{name}.py').read_text(encoding='utf-8')
        docstring = ast.get_docstring(ast.parse(text)) or ''
        summary = ' '.join(docstring.split('\n\n')[0].split())
        lines.append(f'  {name}: {summary.partition(". ")[0].rstrip(".:")}')
    return '\n'.join(lines)


def main() -> None:
    """Run the tool that the command line names, with all of its options.

    Exits with the tool's status; without a known tool with 2 and the list of
    tools.
    """
    name = sys.argv[1] if sys.argv[1:] else '--help'
    if name in ('-h', '--help'):
        print(usage())
        sys.exit(0 if sys.argv[1:] else 2)
    if name == '--version':
        print(f'mmnanguard {__version__}')
        sys.exit()
    if name not in TOOLS:
        # Last, so that the list does not scroll it away.
        hint = did_you_mean(name, TOOLS).capitalize().rstrip()
        print(f'{usage()}\n{name!r} is no tool. {hint}', file=sys.stderr)
        sys.exit(2)
    ToolParser.name_module(name)
    sys.argv[:2] = [str(FOLDER / f'{name}.py')]
    # Some tools import another tool by its bare name.
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
