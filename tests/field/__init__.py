"""Training runs that people reported in public, made again with small models.

The second law of this package is that a guarded run never ends worse than the
same run without the guard. Each scenario is one run: a net, data, a loss, an
optimizer, the public report that it comes from, and what a good engineer
would say about it. Nothing is copied from a report but the mechanism.

Read in this order:

- ``scenario.py``: the base class of a scenario, and what it may state;
- ``sides.py``: runs a scenario under MMEngine's own wrapper, under the guarded
  wrapper alone, and with everything of ``--guard full``;
- ``verdict.py``: compares the three runs and lists what is wrong;
- ``healthy.py``, ``detection.py`` and the others: the scenarios, by topic;
- ``all_scenarios.py``: the list of these modules;
- ``test_field.py`` and ``score.py``: the same verdicts as tests and as table.

To add a scenario, write a class in one of the modules and run
``python tests/field/score.py NAME``.
"""
