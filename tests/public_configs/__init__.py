"""A score of migrations of configs that projects have published.

The configs are not part of this project: ``score.py`` reads a folder of
checkouts. A config of 1.x and its migration are described by facts (length,
learning rates, intervals, data loaders, hooks, ...), each by the rules of its
own framework, and compared. Nothing of ``mmnanguard.migrate`` is used to
describe them.

Read in this order:

- ``facts.py``: the values that are compared, and when they are equal;
- ``run_1x.py``: the facts of a config of 1.x, by the rules of mmcv 1.7.2;
- ``run_2x.py``: the facts of a config of 2.x, from MMEngine itself;
- ``compare.py``: the differences, and which of them the notes tell of;
- ``guards.py``: the same for ``apply_guard``, and ``stubs.py`` for packages
  that are not installed;
- ``trees.py``: the leaves of a project, and the migration of each;
- ``score.py``: the table;
- ``test_oracle.py``: small trees in which it has to find each difference.
"""
