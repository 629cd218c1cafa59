"""How Sphinx builds the pages of this folder; docs/zh_cn shares it.

GitHub shows the same files, so links are Markdown's own: to pages, to
headings, to files of the repository.
"""

import os
import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref

from mmnanguard.optim.guarded_wrapper import GuardedWrapper
from mmnanguard.version import __version__

project = 'mmnanguard'
author = 'The mmnanguard contributors'
copyright = author
release = version = __version__
language = 'en'

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']

html_theme = 'furo'
html_title = f'{project} {release}'
html_copy_source = False
html_show_sphinx = False

# Headings get GitHub's own anchors.
myst_heading_anchors = 4
myst_links_external_new_tab = True

# Docstrings have no types: annotations have them.
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_typehints_format = 'short'
autodoc_inherit_docstrings = False
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Napoleon would take it for the type of the argument, which is a dict.
del GuardedWrapper.__annotations__['guard']

# Each name has to be found, but those of other projects, whose inventories
# are on the network.
nitpicky = True
nitpick_ignore_regex = [
    (r'py:.*', r'(torch|mmengine|mmcv|numpy|np|collections|typing|enum)\b.*'),
    (r'py:.*', r'(argparse|datetime|pathlib|contextlib|logging)\b.*'),
    # Not for users.
    (r'py:class', r'mmnanguard\.report\.\w+\.(Summary|Curve|Samples)'),
    (r'py:class', r'mmnanguard\.report\.\w+\.(Step|Metric)'),
    (r'py:class', r'mmnanguard\.core\.rows\.audit_row\.AuditRow'),
    (r'py:class', r'mmnanguard\.hooks\._shared\.patches\.Patches'),
    (r'py:func', 'summarize'),
    (r'py:.*', r'unscale_|draws_anew|.*\.InputPolicy'),
    (r'py:exc', r'MissingKey|UnreadableField'),
    (r'py:class', r'mmnanguard\.core\.clipping\.(window|moments)\..*'),
    (r'py:class', r'mmnanguard\.optim\.(window|guarded_params)\..*'),
    (r'py:class', r'mmnanguard\.core\.rules\.recent_commits\..*'),
    (r'py:class', r'mmnanguard\.core\.rules\.scale_trial\..*'),
]
linkcheck_timeout = 10
linkcheck_retries = 1


def find_public_name(app, env, node, contnode):
    """Resolve a reference to the place that documents its name.

    A name is documented where users import it from, such as
    ``mmnanguard.core.GuardPolicy``. An annotation names the module that
    defines it, and a docstring may give the bare name.
    """
    name = node.get('reftarget', '').rpartition('.')[2]
    domain = env.domains.get(node.get('refdomain'))
    if domain is None or domain.name != 'py':
        return None
    for public in domain.objects:
        if public.startswith('mmnanguard.') and public.endswith(f'.{name}'):
            return domain.resolve_xref(
                env, node['refdoc'], app.builder, 'obj', public, node, contnode
            )
    return None


def link_other_pages(app, doctree):
    """To a Markdown file that is no page of this language: the other
    language's page, or the file itself.
    """
    for link in list(doctree.findall(pending_xref)):
        if link.get('reftype') != 'myst' or link.get('refdomain') != 'doc':
            continue
        path = Path(app.srcdir, f'{link["reftarget"]}.md').resolve()
        if path.is_relative_to(Path(app.srcdir).resolve()):
            continue
        if path.parent.parent == Path(app.srcdir).resolve().parent:
            uri = f'../{path.parent.name}/{path.stem}.html'
            new = nodes.reference(refuri=uri)
        else:
            target = os.path.relpath(path, app.srcdir)
            new = download_reference(reftarget=target, refdoc=link['refdoc'])
        new += link.children
        link.replace_self(new)


def list_what_is_there(app, docname, source):
    """Leave pages that this language does not have (yet) out of the table of
    contents: lines of one name in index.md.
    """
    pages = {path.stem for path in Path(app.srcdir).glob('*.[mr][ds]*')}
    if docname == 'index':
        source[0] = re.sub(
            r'^(\w+)\n',
            lambda line: line[0] if line[1] in pages else '',
            source[0],
            flags=re.M,
        )


def setup(app):
    # Not only when it has changed: pages may have come.
    app.connect('env-get-outdated', lambda *_: ['index'])
    app.connect('source-read', list_what_is_there)
    app.connect('missing-reference', find_public_name)
    # Before Sphinx collects what is to be copied.
    app.connect('doctree-read', link_other_pages, priority=100)
