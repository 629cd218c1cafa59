"""docs/en/options.md has every option, with the default that the code has."""

import dataclasses
import inspect
import itertools
import re

import pytest
from docs_shell import ROOT, parser_of

from mmnanguard import apply_guard
from mmnanguard.core import Divergence, GuardPolicy, LrBackoff, SpikePolicy
from mmnanguard.core.clipping.clip_rule import config_keys
from mmnanguard.hooks.drill.fault import Fault
from mmnanguard.numerics import GuardedGradScaler
from mmnanguard.optim.clip_grad import MMENGINE_KEYS, OWN_RULES
from mmnanguard.registry import (
    CHECKS,
    CLIPS,
    DATASETS,
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)
from mmnanguard.report import read_events

TEXT = (ROOT / 'docs/en/options.md').read_text()
# Sections by heading: their first table, as rows of cells.
SECTIONS = {
    heading: re.findall(
        r'^\| `([^`]+)` \| (.*?) \| (.*?) \| .*\|$', body, re.M
    )
    for heading, body in re.findall(
        r'^#{3,4} (.*?)\n(.*?)(?=^#{2,4} |\Z)', TEXT, re.M | re.S
    )
}
REGISTRIES = (
    CHECKS,
    CLIPS,
    DATASETS,
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)


def registered_classes():
    """Return the classes of this package that are registered."""
    classes = set()
    for registry in REGISTRIES:
        registry.import_from_location()
        classes.update(registry.module_dict.values())
    return {c for c in classes if c.__module__.startswith('mmnanguard.')}


REGISTERED = registered_classes()
OWNERS = {cls.__name__: cls for cls in REGISTERED}
OWNERS.update(
    {
        'The policy': GuardPolicy,
        'spike': SpikePolicy,
        'lr_backoff': LrBackoff,
        'divergence': Divergence,
        'The loss scale': GuardedGradScaler,
        'Fault': Fault,
        'apply_guard': apply_guard,
        'read_events': read_events,
    }
)
# Which scripts have options: those that build a parser.
TOOLS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(
        [*(ROOT / 'tools').glob('*.py'), *(ROOT / 'benchmarks').glob('*.py')]
    )
    if 'Parser(' in path.read_text()
]

# What rules of clip_grad remember is no key of their config.
STATE = set()
for rule in OWN_RULES:
    names_of_fields = {field.name for field in dataclasses.fields(rule)}
    STATE |= names_of_fields - set(config_keys(rule))
# Defaults that depend on the machine, or are too long for a table.
IN_WORDS = {
    ('tools/replay.py', '--device'): 'cuda or cpu',
    ('benchmarks/benchmark_hooks.py', '--hooks'): 'all rows',
    ('benchmarks/hops.py', '--cases'): 'all',
    ('tools/cases.py', 'cases'): 'all',
}


def documented_defaults(heading):
    return {key: default.strip('`') for key, _, default in SECTIONS[heading]}


def written(default):
    if default is inspect.Parameter.empty or default is dataclasses.MISSING:
        return 'needed'
    return str(default) if isinstance(default, float) else repr(default)


@pytest.mark.parametrize('heading', sorted(OWNERS))
def test_each_key_is_there_with_its_default(heading):
    owner = OWNERS[heading]
    parameters = inspect.signature(owner).parameters.values()
    defaults = {
        parameter.name: written(parameter.default)
        for parameter in parameters
        if parameter.name not in ('device', 'others', *STATE)
    }
    if heading == 'TieredClip':  # which refuses its own default
        defaults['tiers'] = 'needed'
    assert documented_defaults(heading) == defaults


def test_no_section_is_about_what_is_not_there():
    others = {'Gradient clipping', "MMEngine's own"}
    assert set(SECTIONS) == {*OWNERS, *TOOLS, *others}
    assert {key for key, *_ in SECTIONS["MMEngine's own"]} == {
        'type',
        *itertools.chain(*MMENGINE_KEYS.values()),
    }


@pytest.mark.parametrize('tool', TOOLS)
def test_each_option_of_a_tool_is_there_with_its_default(tool):
    defaults = {}
    for action in parser_of(tool)._actions:
        # docs/en/tools.md has what all tools have.
        if action.dest in ('help', 'version'):
            continue
        name = (action.option_strings or [action.dest])[0]
        default = action.default
        is_needed = action.required or not action.option_strings
        text = default if isinstance(default, str) else repr(default)
        defaults[name] = 'needed' if is_needed and default is None else text
        if (tool, name) in IN_WORDS:
            defaults[name] = IN_WORDS[tool, name]
    assert documented_defaults(tool) == defaults
