"""The rings: imports point inward only, and files stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmnanguard'
FILES = sorted(
    path
    for path in PACKAGE.rglob('*.py')
    if '.mim' not in path.relative_to(PACKAGE).parts
)
# What a ring may import of the package, and of the outside world.
OWN = {
    'core': {'core'},
    'numerics': {'core', 'numerics'},
    'datasets': {'core', 'datasets', 'registry'},
    'optim': {'core', 'numerics', 'optim', 'registry', 'safe_load', 'version'},
    'hooks': {'core', 'numerics', 'hooks', 'registry', 'safe_load', 'version'},
    'models': {'core', 'numerics', 'models', 'registry'},
    'report': {'core', 'report'},
    'migrate': {'core', 'migrate', 'read_config'},
}
FORBIDDEN = {
    'core': {'torch', 'numpy', 'mmengine', 'mmcv'},
    'numerics': {'mmengine', 'mmcv'},
    'datasets': set(),
    'optim': {'mmcv'},
    'hooks': {'mmcv'},
    'models': {'mmcv'},
    'report': {'torch', 'numpy', 'mmengine', 'mmcv'},
    'migrate': {'torch', 'numpy', 'mmcv'},
}


def imported(path):
    """Absolute names of everything that a file imports."""
    package = ['mmnanguard', *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            yield '.'.join(
                (base if node.level else []) + [node.module or '']
            ).strip('.')


@pytest.mark.parametrize('ring', OWN)
def test_imports_point_inward(ring):
    files = [path for path in FILES if ring in path.relative_to(PACKAGE).parts]
    assert files
    for path in files:
        for name in imported(path):
            top, *rest = name.split('.')
            assert top not in FORBIDDEN[ring], f'{path}: {name}'
            if top == 'mmnanguard':
                assert rest[0] in OWN[ring], f'{path}: {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_file_is_small_and_says_what_it_holds(path):
    assert len(path.read_text().splitlines()) <= 300
    assert path.stem not in ('utils', 'common', 'helpers', 'misc')
