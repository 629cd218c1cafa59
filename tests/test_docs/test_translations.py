"""A page and its translation say the same, block by block."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

DOCS = Path(__file__).parents[2] / 'docs'
LANGUAGES = ['en', 'zh_cn']
PAGES = sorted(path.name for path in (DOCS / 'en').glob('*.md'))
PUNCTUATION = re.compile(r'[^\w\- ]')


def parse(path):
    return MarkdownIt('commonmark').enable('table').parse(path.read_text())


def headings(path):
    """Return the anchors of a page, as GitHub and myst-parser make them."""
    tokens = parse(path)
    texts = [
        ''.join(child.content for child in inline.children)
        for opening, inline in zip(tokens, tokens[1:])
        if opening.type == 'heading_open'
    ]
    return [
        PUNCTUATION.sub('', text.lower()).replace(' ', '-') for text in texts
    ]


def target(link, page):
    """Return a link's target in a form that is equal in all languages.

    That is a page's name and the number of its heading, a file's path, or an
    address.
    """
    if ':' in link:
        return link
    name, _, anchor = unquote(link).partition('#')
    path = (page.parent / name).resolve() if name else page
    assert path.exists(), f'{page}: no file {link}'
    if path.suffix != '.md':
        return path
    names = headings(path) if anchor else []
    assert not anchor or anchor in names, f'{page}: no heading {link}'
    is_own = path.parent == page.parent
    place = path.name if is_own else path
    return place, names.index(anchor) if anchor else None


def facts(token, page):
    """Return the parts that a translation keeps: code, comments, numbers,
    links.
    """
    if token.type != 'inline':
        # The captions of a table of contents are translated.
        return [re.sub('^:caption: .*', '', token.content, flags=re.M)]
    children = token.children
    text = ' '.join(c.content for c in children if c.type == 'text')
    links = []
    for child in children:
        for name in ('href', 'src'):
            if child.attrs.get(name):
                links.append(target(child.attrs[name], page))
    return [
        {c.content for c in children if c.type == 'code_inline'},
        sorted(re.findall(r'(?<![a-zA-Z\d.])\d+(?:[.,]\d+)*', text)),
        sorted(links, key=str),
        [c.content for c in children if c.type == 'html_inline'],
    ]


def test_each_page_is_there_in_both_languages():
    names = [
        {path.name for path in (DOCS / language).glob('*.md')}
        for language in LANGUAGES
    ]
    assert names[0] == names[1] != set()


@pytest.mark.parametrize('name', PAGES)
def test_blocks_are_the_same(name):
    pages = [DOCS / language / name for language in LANGUAGES]
    tokens = [parse(page) for page in pages]
    for ours, theirs in zip(*tokens):
        lines = [f'{p}:{t.map}' for p, t in zip(pages, (ours, theirs))]
        assert ours.type == theirs.type, lines
        assert ours.tag == theirs.tag, lines
        assert ours.info == theirs.info, lines
        assert facts(ours, pages[0]) == facts(theirs, pages[1]), lines
    assert len(tokens[0]) == len(tokens[1])


@pytest.mark.parametrize('name', PAGES)
def test_nothing_is_left_unrendered(name):
    """Bold that ends in punctuation needs a space after it."""
    for language in LANGUAGES:
        for token in parse(DOCS / language / name):
            for child in token.children or []:
                assert child.type != 'text' or '**' not in child.content
