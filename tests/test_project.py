"""Workflows, templates of issues and pull requests, and the release script."""

import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
YAML_FILES = sorted(
    [*ROOT.glob('.github/**/*.yml'), ROOT / '.readthedocs.yaml'], key=str
)


@pytest.mark.parametrize('path', YAML_FILES, ids=lambda path: path.name)
def test_it_is_yaml(path):
    assert yaml.safe_load(path.read_text())


def steps_of(name):
    workflow = yaml.safe_load((ROOT / '.github/workflows' / name).read_text())
    for job in workflow['jobs'].values():
        for step in job['steps']:
            yield step.get('run', '')


@pytest.mark.parametrize(
    ('workflow', 'script'),
    [('ci.yml', '.ci/run'), ('release.yml', '.ci/release')],
)
def test_a_workflow_runs_the_script(workflow, script):
    assert script in list(steps_of(workflow))
    assert os.access(ROOT / script, os.X_OK)


def test_each_make_target_of_a_workflow_exists():
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'make ([\w-]+)', '\n'.join(steps_of('ci.yml'))):
        assert re.search(f'^{target}:', makefile, re.M), target


@pytest.mark.parametrize('form', ['bug.yml', 'wrong_verdict.yml'])
def test_a_report_has_to_have_what_explains_it(form):
    path = ROOT / '.github' / 'ISSUE_TEMPLATE' / form
    fields = yaml.safe_load(path.read_text())['body']
    needed = [f['id'] for f in fields if f.get('validations')]
    asked = ' '.join(f['attributes'].get('description', '') for f in fields)
    assert 'events.jsonl' in asked
    assert len(needed) >= 3


@pytest.mark.parametrize('page', ['RELEASING.md', 'SECURITY.md'])
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text()
    names = re.findall(r'\]\(([\w./]+)\)', text)
    names += re.findall(r'`(?:python )?([.\w]+/[\w./]+)`', text)
    assert names
    for name in set(names) - {'dist/', 'nanguard/dumps/'}:
        assert (ROOT / name).exists(), name
