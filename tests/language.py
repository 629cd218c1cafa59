"""The part of the language rules that a machine can check.

``python tests/language.py [PATHS]`` prints the violations in these files or
folders (by default all of ``FOLDERS``) and the counts of the package, and
fails if there is a violation or a count beyond its limit. ``make lint`` runs
it.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence


class Limit(NamedTuple):
    """The value that a count must not pass."""

    value: float
    is_largest: bool

    def is_passed_by(self, count: float) -> bool:
        """Whether the count is worse than the limit."""
        if self.is_largest:
            return count > self.value
        return count < self.value


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('mmnanguard', 'tools', 'benchmarks', 'tests')
# In tests the name of a file says what it holds.
FOLDERS_WITH_MODULE_DOCSTRINGS = ('mmnanguard', 'tools', 'benchmarks')

# A docstring that begins with one of these is a fragment or a question.
# 'Whether' and imperatives such as 'Do' are no fragments.
FRAGMENT_OPENINGS = frozenset(
    """
    about above across after against along also although among and are as at
    because before behind below beside besides between beyond both but by can
    could did does during either else except for from had has have he her here
    hers his how however if in inside into is it its itself like may might must
    near need neither nor not of off on once only onto or otherwise out outside
    over per rather shall she should since so than that their theirs them then
    there these they this those though through to too toward towards under
    unless until unlike upon was we were what whatever when whenever where
    wherever which while who whom whose why will with within without would you
    """.split()  # noqa: SIM905
)

# Names that do not say what they hold, and words that the vocabulary of the
# project replaced by those of PyTorch, MMEngine or the literature.
BANNED_NAMES = frozenset(
    """
    told found each own one both Told Found twins gaps settle is_spread
    spread_over mend heed quiet_hub written_aside whole_files Slot Layout
    Examination stand_in cures troubles thin_out look_at look_closer
    momentum_parts
    """.split()  # noqa: SIM905
)

# The limits of the package's counts. Six well-known projects of this field
# have 2.8 to 6.3 comprehensions and 2.2 to 9.3 conditional expressions.
LIMITS = {
    'comprehensions per 1000 lines': Limit(12.0, is_largest=True),
    'conditional expressions per 1000 lines': Limit(8.0, is_largest=True),
    'comments per 100 lines': Limit(4.0, is_largest=False),
    'Any per 1000 lines': Limit(10.0, is_largest=True),
}

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TOOL_COMMENT = re.compile(r'#\s*(noqa|type:|pragma|fmt:|mypy:|!)')


class Violation(NamedTuple):
    """A place that breaks a rule."""

    path: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: {self.rule}'


def check_source(
    source: str, path: str, needs_module_docstring: bool = True
) -> List[Violation]:
    """Return the violations in the source of one module, by line."""
    tree = ast.parse(source)
    violations = []
    if needs_module_docstring and not ast.get_docstring(tree):
        violations.append(Violation(path, 1, 'the module has no docstring'))
    for node in ast.walk(tree):
        rules = [
            *_broken_docstring_rules(node),
            *_broken_expression_rules(node),
            *(
                f"the name '{name}' is banned: say what it is"
                for name in _defined_names(node)
                if name.lstrip('_') in BANNED_NAMES
            ),
        ]
        line = getattr(node, 'lineno', 1)
        violations += [Violation(path, line, rule) for rule in rules]
    return sorted(violations, key=lambda violation: violation.line)


def _broken_docstring_rules(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, DOCUMENTED):
        return
    docstring = ast.get_docstring(node)
    if not docstring:
        return
    summary = ' '.join(docstring.split('\n\n')[0].split())
    opening = summary.split()[0].strip('\'"`*.,:;!?()').lower()
    opening = opening.split("'")[0]
    if opening in FRAGMENT_OPENINGS:
        yield f"the docstring opens with '{opening}': {summary[:60]}"
    if summary.endswith('?'):
        yield f'the docstring is a question: {summary[:60]}'


def _broken_expression_rules(node: ast.AST) -> Iterator[str]:
    inner = [child for child in ast.walk(node) if child is not node]
    if isinstance(node, COMPREHENSIONS):
        if len(node.generators) > 1:
            yield "a comprehension has two 'for'"
        if any(isinstance(child, ast.IfExp) for child in inner):
            yield 'a conditional expression stands inside a comprehension'
    if isinstance(node, ast.IfExp) and any(
        isinstance(child, ast.IfExp) for child in inner
    ):
        yield 'conditional expressions are nested'


def _defined_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, DOCUMENTED) and not isinstance(node, ast.Module):
        yield node.name


def count_words(source: str) -> Dict[str, int]:
    """Count in one module what ``LIMITS`` limits, and its lines."""
    counts: Dict[str, int] = Counter(lines=len(source.splitlines()))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, COMPREHENSIONS):
            counts['comprehensions'] += 1
        elif isinstance(node, ast.IfExp):
            counts['conditional expressions'] += 1
        elif getattr(node, 'id', getattr(node, 'attr', '')) == 'Any':
            counts['Any'] += 1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_comment = token.type == tokenize.COMMENT
        if is_comment and not TOOL_COMMENT.match(token.string):
            counts['comments'] += 1
    return counts


def measure_package() -> Dict[str, float]:
    """Return the counts of ``LIMITS`` over all files of the package."""
    total: Dict[str, int] = Counter()
    for path in list_files([ROOT / 'mmnanguard']):
        total.update(count_words(path.read_text(encoding='utf-8')))
    measured = {}
    for name in LIMITS:
        word, lines = name.split(' per ')
        unit = int(lines.split()[0])
        measured[name] = unit * total[word] / total['lines']
    return measured


def exceeded_limits(measured: Dict[str, float]) -> List[str]:
    """Name the counts that are beyond their limits."""
    return [
        name
        for name, limit in LIMITS.items()
        if limit.is_passed_by(measured[name])
    ]


def list_files(paths: Sequence[Path]) -> List[Path]:
    """Return these Python files and those below these folders, sorted."""
    files = set()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f'{path}: no such file or folder')
        files.update([path] if path.is_file() else path.rglob('*.py'))
    # A build puts links to configs and tools below `.mim`.
    return sorted(file for file in files if '.mim' not in file.parts)


def check_files(files: Sequence[Path]) -> List[Violation]:
    """Return the violations in these files."""
    violations = []
    for file in files:
        name = file.resolve().relative_to(ROOT).as_posix()
        violations += check_source(
            file.read_text(encoding='utf-8'),
            name,
            name.split('/')[0] in FOLDERS_WITH_MODULE_DOCSTRINGS,
        )
    return violations


def main() -> int:
    """Print violations and counts; return the exit status."""
    parser = argparse.ArgumentParser(description='Check the language rules.')
    parser.add_argument('paths', nargs='*', type=Path)
    args = parser.parse_args()
    folders = [ROOT / folder for folder in FOLDERS]
    violations = check_files(list_files(args.paths or folders))
    for violation in violations:
        print(violation)
    measured = measure_package()
    exceeded = exceeded_limits(measured)
    for name, limit in LIMITS.items():
        mark = '  <- beyond the limit' if name in exceeded else ''
        print(f'{name}: {measured[name]:.2f} (limit {limit.value:g}){mark}')
    print(f'{len(violations)} violations')
    return 1 if violations or exceeded else 0


if __name__ == '__main__':
    sys.exit(main())
