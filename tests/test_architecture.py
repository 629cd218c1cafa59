"""The rings and rooms of the package: imports point inward only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmnanguard'
FILES = sorted(
    path
    for path in PACKAGE.rglob('*.py')
    if '.mim' not in path.relative_to(PACKAGE).parts
)
# What each ring may import from the package.
ALLOWED_RINGS = {
    '_support': {'_support'},
    'core': {'_support', 'core'},
    'numerics': {'_support', 'core', 'numerics'},
    'datasets': {'_support', '_console', 'core', 'datasets', 'registry'},
    'optim': {'_support', '_console', 'core', 'numerics', 'optim', 'registry'},
    'hooks': {
        '_support',
        '_console',
        'core',
        'numerics',
        'hooks',
        'registry',
        'safe_load',
        'version',
    },
    'models': {'_support', 'core', 'numerics', 'models', 'registry'},
    'report': {'_support', 'core', 'report'},
    'migrate': {'_support', 'core', 'migrate', 'read_config'},
    'doctor': {
        '_support',
        'check_stack',
        'core',
        'numerics',
        'optim',
        'hooks',
        'datasets',
        'doctor',
        'read_config',
        'safe_load',
    },
}
# What each ring may not import from the outside world.
FORBIDDEN_PACKAGES = {
    '_support': {'torch', 'numpy', 'mmengine', 'mmcv'},
    'core': {'torch', 'numpy', 'mmengine', 'mmcv'},
    'numerics': {'mmengine', 'mmcv'},
    'datasets': set(),
    'optim': {'mmcv'},
    'hooks': {'mmcv'},
    'models': {'mmcv'},
    'report': {'torch', 'numpy', 'mmengine', 'mmcv'},
    'migrate': {'torch', 'numpy', 'mmcv'},
    'doctor': {'numpy', 'mmcv'},
}
# The sub-packages (rooms) of a ring that each of its rooms may import.
ALLOWED_ROOMS = {
    'core': {
        'clipping': set(),
        'rules': {'clipping'},
        'rows': {'rules'},
        'stability': {'rules', 'rows'},
    },
    'numerics': {
        'base': set(),
        'snapshot': {'base'},
        'update': {'base', 'snapshot'},
        'probe': {'base', 'snapshot', 'update'},
        'checkpoints': {'base', 'snapshot', 'update'},
        'stability': {'base', 'update', 'probe'},
    },
    'hooks': {
        '_shared': set(),
        'events': {'_shared'},
        'replay': {'_shared'},
        'inputs': {'_shared'},
        'recovery': {'_shared', 'replay'},
        'stability': {'_shared'},
        'drill': {'_shared'},
        'guard': {'_shared', 'events', 'recovery'},
    },
}


def list_imports(path):
    """Return the absolute names of all modules that a file imports."""
    package = ['mmnanguard', *path.relative_to(PACKAGE).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            parts = base if node.level else []
            names.append('.'.join([*parts, node.module or '']).strip('.'))
    return names


def files_of_ring(ring):
    return [
        path for path in FILES if path.relative_to(PACKAGE).parts[0] == ring
    ]


def test_each_folder_is_a_known_ring():
    folders = {path.relative_to(PACKAGE).parts[0] for path in FILES}
    assert {name for name in folders if not name.endswith('.py')} == set(
        ALLOWED_RINGS
    )


@pytest.mark.parametrize('ring', ALLOWED_RINGS)
def test_imports_between_rings_point_inward(ring):
    assert files_of_ring(ring)
    for path in files_of_ring(ring):
        for name in list_imports(path):
            top, *rest = name.split('.')
            assert top not in FORBIDDEN_PACKAGES[ring], f'{path}: {name}'
            if top == 'mmnanguard':
                assert rest[0] in ALLOWED_RINGS[ring], f'{path}: {name}'


@pytest.mark.parametrize('ring', ALLOWED_ROOMS)
def test_imports_between_rooms_have_no_cycle(ring):
    rooms = ALLOWED_ROOMS[ring]
    seen = set()
    for path in files_of_ring(ring):
        room = path.relative_to(PACKAGE).parts[1]
        if room not in rooms:  # a file of the ring itself
            continue
        seen.add(room)
        for name in list_imports(path):
            top, *rest = name.split('.')
            if top != 'mmnanguard' or rest[0] != ring or len(rest) < 2:
                continue
            if rest[1] in rooms and rest[1] != room:
                assert rest[1] in rooms[room], f'{path}: {name}'
    assert seen == set(rooms)


def test_files_have_names_that_say_what_they_hold():
    drawers = {'utils', 'common', 'helpers', 'misc'}
    assert not drawers.intersection(path.stem for path in FILES)


@pytest.mark.parametrize('path', FILES, ids=str)
def test_a_file_is_no_longer_than_its_concept(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize('ring', ALLOWED_RINGS)
def test_each_folder_lists_its_modules(ring):
    for path in files_of_ring(ring):
        text = path.with_name('__init__.py').read_text()
        docstring = ast.get_docstring(ast.parse(text))
        is_listed = f'``{path.stem}``' in docstring
        assert path.stem == '__init__' or is_listed, path
