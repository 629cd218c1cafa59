"""The targets of the documentation's links and names exist."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from docs_shell import ROOT
from mmengine.registry import Registry

import mmnanguard.report
from mmnanguard import core, hooks, models, numerics, optim
from mmnanguard.registry import CHECKS, DATASETS, TRANSFORMS

PAGES = [
    *sorted(ROOT.glob('*.md')),
    *sorted((ROOT / 'docs').rglob('*.md')),
    ROOT / 'configs' / 'cases' / 'README.md',
]
LINK = re.compile(r'!?\[[^\]]*\]\(\s*<?([^)>\s]+)>?\)')


def plain(text):
    """Return the text without code and comments."""
    text = re.sub(r'```.*?```|<!--.*?-->', '', text, flags=re.S)
    return re.sub(r'`[^`\n]+`', '', text)


def anchors(path):
    """Return the anchors of the headings, as GitHub makes them."""
    result = []
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.S)
    for heading in re.findall(r'^#+ (.*)', text, re.M):
        heading = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
        words = re.sub(r'[^\w\- ]', '', heading.strip().lower())
        anchor = words.replace(' ', '-')
        same = result.count(anchor)
        result.append(f'{anchor}-{same}' if same else anchor)
    return result


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(plain(page.read_text())):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == 'https', link
            assert '.' in parts.netloc, link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), f'{page.name}: {link}'
        assert ROOT in (target, *target.parents), f'{link} leaves the project'
        if parts.fragment:
            assert parts.fragment in anchors(target), f'{page.name}: {link}'


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_files_that_are_named_are_there(page):
    text = page.read_text()
    files = re.findall(
        r'(?<![\w/.])((?:benchmarks|tools|tests|configs|docs|requirements|mmnanguard)'
        r'/[\w/.]+\.(?:py|md|txt|svg))(?!\w)',
        text,
    )
    for name in files:
        assert (ROOT / name).exists() or (page.parent / name).exists(), name


def test_each_page_is_in_the_table_of_contents():
    for folder in (ROOT / 'docs').glob('*/index.md'):
        listed = re.findall(r'^(\w+)$', folder.read_text(), re.M)
        pages = [
            path.stem
            for path in folder.parent.iterdir()
            if path.suffix in ('.md', '.rst') and path.stem != 'index'
        ]
        assert sorted(set(pages) - set(listed)) == []
        assert len(listed) == len(set(listed))


def test_the_reference_has_the_public_surface():
    text = (ROOT / 'docs' / 'en' / 'api.rst').read_text()
    whole = re.findall(r'automodule:: (\S+)', text)
    names = re.findall(r'auto(?:class|function|exception):: (\S+)', text)
    assert {'mmnanguard.hooks', 'mmnanguard.datasets'} <= set(whole)
    assert 'mmnanguard.models' in whole
    listed = {name.rpartition('.')[2] for name in names}
    listed.update(*(m.__all__ for m in (hooks, models, mmnanguard.datasets)))
    registered = set()
    for registry in (CHECKS, DATASETS, TRANSFORMS):
        for name, part in registry.module_dict.items():
            # Other tests register parts too.
            if part.__module__.startswith('mmnanguard.'):
                registered.add(name)
    wanted = {*mmnanguard.__all__, *optim.__all__, *registered}
    wanted |= set(mmnanguard.report.__all__)
    wanted -= {'__version__'}
    wanted |= {name for name in core.__all__ if name[0].isupper()}
    wanted -= {'NORM_LIMIT', 'ClipRule', 'NoClip'}
    wanted |= {name for name in numerics.__all__ if name.startswith('safe_')}
    assert sorted(wanted - listed) == []
    for name in names:
        module, _, last = name.rpartition('.')
        assert hasattr(__import__(module, fromlist=[last]), last), name


def test_names_of_the_package_are_there():
    """Each ``mmnanguard.X`` in texts, configs and command lines is a
    registered type, a module or a name in it.
    """
    for page in [p for p in PAGES if p.name != 'CHANGELOG.md']:
        text = page.read_text()
        for name in set(re.findall(r'mmnanguard\.([A-Za-z_]\w*)', text)):
            is_file = (Path(mmnanguard.__file__).parent / name).is_dir()
            is_file |= (
                Path(mmnanguard.__file__).parent / f'{name}.py'
            ).exists()
            is_type = any(
                name in registry.module_dict
                for registry in vars(mmnanguard.registry).values()
                if isinstance(registry, Registry)
            )
            is_clip = name in ('AutoClip', 'TieredClip', 'ZClip')
            assert (
                is_file or is_type or is_clip or hasattr(mmnanguard, name)
            ), f'{page.name}: mmnanguard.{name}'
