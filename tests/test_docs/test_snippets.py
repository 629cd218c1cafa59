"""The snippets of docs/en and the README can be copied: configs build, code
runs, commands have the options that they are given.
"""

import ast
import contextlib
import inspect
import io
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from docs_shell import (
    PAGES,
    ROOT,
    all_blocks,
    commands,
    parser_of,
    run,
    words_of,
)
from mmengine.config import Config
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from mmnanguard import registry
from mmnanguard.core import GuardPolicy
from mmnanguard.datasets.find_problems import build_checks
from mmnanguard.optim import NanGuardAmpOptimWrapper
from mmnanguard.optim.clip_grad import build_clip
from mmnanguard.registry import (
    CHECKS,
    DATASETS,
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

OURS = [r for r in vars(registry).values() if isinstance(r, Registry)]
# Commands that are not of this project.
OTHERS = ('pip', 'cd', 'jq', 'mkdir', 'tar', 'sed', 'chromium')
# Needed by a class, and given by the model that the config is for.
GIVEN = dict(num_features=8)
WRAPPER_KEYS = {
    *inspect.signature(NanGuardAmpOptimWrapper).parameters,
    'type',
    'constructor',
    'paramwise_cfg',
}


@pytest.fixture
def registries_as_they_were():
    """Restore the registries, as a snippet may register a class again."""
    import_module('configs.digits.digits')
    for our_registry in OURS:
        our_registry.import_from_location()
    known = [*OURS, MMENGINE_HOOKS, MMENGINE_WRAPPERS, MMENGINE_TRANSFORMS]
    before = [dict(item.module_dict) for item in known]
    yield
    for known_registry, names in zip(known, before):
        known_registry.module_dict.clear()
        known_registry.module_dict.update(names)


def nodes(value):
    """Yield each dict in a config."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from nodes(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from nodes(item)


def build(node):
    """Build a part of mmnanguard; return False for any other dict."""
    name = str(node.get('type', '')).replace('mmnanguard.', '')
    if name in OPTIM_WRAPPERS.module_dict:
        assert set(node) <= WRAPPER_KEYS
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1)
        keys = {
            key: value
            for key, value in node.items()
            if key not in ('optimizer', 'constructor', 'paramwise_cfg')
        }
        OPTIM_WRAPPERS.build(dict(keys, optimizer=optimizer))
    elif name in HOOKS.module_dict:
        HOOKS.build(node)
    elif name in TRANSFORMS.module_dict:
        TRANSFORMS.build(node)
    elif name in CHECKS.module_dict:
        build_checks([node], 'docs')
    elif name in DATASETS.module_dict:  # around a dataset that is not here
        inspect.signature(DATASETS.get(name)).bind(
            **{key: value for key, value in node.items() if key != 'type'}
        )
    elif name in MODELS.module_dict:
        keys = inspect.signature(MODELS.get(name)).parameters
        given = {key: GIVEN[key] for key in GIVEN if key in keys}
        MODELS.build({**given, **node})
    else:
        return False
    return True


def check_config(text):
    cfg = Config.fromstring(text, '.py')
    built = [build(node) for node in nodes(cfg.to_dict())]
    wrapper = cfg.get('optim_wrapper', {})
    if wrapper and 'type' not in wrapper and 'constructor' not in wrapper:
        assert set(wrapper) <= WRAPPER_KEYS
        GuardPolicy.from_config(wrapper.get('guard'))
        built.append(True)
    if 'clip_grad' in cfg:
        build_clip(cfg.clip_grad)
        built.append(True)
    assert any(built), 'nothing of mmnanguard in it'


def is_literal(statement):
    with contextlib.suppress(ValueError):
        ast.literal_eval(statement.value)
        return True
    return False


@pytest.mark.usefixtures('registries_as_they_were')
@pytest.mark.parametrize('block', all_blocks('python'), ids=str)
def test_python(block):
    if block.mark == 'not run':
        pytest.skip(block.remark)
    if block.mark == 'run by':  # which reads it on its page
        assert Path(block.page).name in (ROOT / block.remark).read_text()
        return
    tree = ast.parse(block.text)
    first = tree.body[0]
    if isinstance(first, ast.Expr) and is_literal(first):
        assert 'schema' in ast.literal_eval(first.value)  # a row
    elif isinstance(first, ast.Expr) and first.value.func.id == 'dict':
        check_config(f'snippet = {block.text}')
    elif all(isinstance(statement, ast.Assign) for statement in tree.body):
        check_config(block.text)
    else:
        names = {}
        exec(block.remark, names)
        exec(block.text, names)


def inline_commands():
    """Yield the commands within the text, such as `pytest tests/test_core`."""
    for page in PAGES:
        text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
        for code in re.findall(r'`([^`]+)`', text):
            code = ' '.join(code.split())
            if re.match(r'(PYTHONPATH=\S+ )?(python|pytest|make) ', code):
                yield f'{page.name}: {code}'


def shown_commands():
    for block in all_blocks('bash'):
        for command in commands(block.text):
            yield f'{block}: {command}'
    yield from inline_commands()


@pytest.mark.parametrize(
    'shown',
    sorted(set(shown_commands())),
    ids=lambda shown: ' '.join(shown.split())[:60],
)
def test_commands_exist(shown):
    words = words_of(shown.split(': ', 1)[1])
    if words[0] == 'torchrun':
        words = ['python', *(w for w in words[1:] if '--nproc' not in w)]
    if words[0] == 'python' and words[1:2] == ['-m']:
        words = words[2:]
    if words == ['mmnanguard', '--help']:
        return
    if words[0] == 'mmnanguard':  # python -m
        words = ['python', f'tools/{words[1]}.py', *words[2:]]
    if words[:3] == ['mim', 'train', 'mmnanguard']:
        words = ['python', 'tools/train.py', *words[3:]]
    if words[0] == 'pytest':
        check_pytest(words[1:])
    elif words[0] == 'make':
        makefile = (ROOT / 'Makefile').read_text()
        assert all(f'\n{target}:' in makefile for target in words[1:])
    elif words[0] == 'timeit':
        names = {}
        exec(words[words.index('-s') + 1], names)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(words[-1], names)
    elif words[0] == 'python' and words[1] != '-c':
        check_script(words[1], words[2:])
    else:
        assert words[0] in OTHERS or words[0] == 'python'


def check_pytest(words):
    paths = [word.split('::')[0] for word in words if '/' in word]
    text = ''
    for path in paths:
        where = ROOT / path
        assert where.exists(), path
        files = where.rglob('test_*.py') if where.is_dir() else [where]
        text += '\n'.join(map(str, files)) + where.name
        if where.is_file():
            text += where.read_text()
    for word in words:
        assert (
            word.startswith(('-', 'tests/'))
            or word in text
            or (word in ('gpu', 'TEST') or ' or ' in word)
        ), word
        if '::' in word:
            assert f'def {word.split("::")[1]}(' in text, word


def check_script(script, words):
    assert (ROOT / script).exists(), script
    for word in words:
        if word.startswith('configs/') and '*' not in word:
            assert (ROOT / word).exists(), word
    if not script.startswith('tools/'):  # of the tests: they have no --help
        text = (ROOT / script).read_text()
        assert all(w in text for w in words if w.startswith('--')), words
        return
    try:
        parser_of(script).parse_args(words)
    except SystemExit as ended:
        if ended.code:
            pytest.fail(f'{script} does not take {words}')


@pytest.mark.parametrize(
    'block',
    [
        block
        for block in all_blocks('bash')
        if re.search(r'^(python -c|jq|cd )', block.text, re.M)
        and not block.mark
    ],
    ids=str,
)
def test_one_liners_print_something(block):
    run('python tools/train.py configs/digits/tour_fp16.py --guard full')
    shown = commands(block.text)
    folder = shown.pop(0) if shown[0].startswith('cd ') else 'true'
    for command in shown:
        if command.startswith('jq'):
            if not shutil.which('jq'):
                pytest.skip('no jq here')
            command = f'{folder} && {command}'
        assert run(command).strip()
