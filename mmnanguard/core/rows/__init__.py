"""The rows of ``events.jsonl``, one record class per kind of row.

A record turns itself into a row and a console line, and a row back into a
record. Hooks write rows with these classes and the report reads with them.

1. ``guard_event``: an update that was not a plain step ('update').
2. ``build_event``: a ``GuardEvent`` from an observation and a verdict.
3. ``autopsy``: what a replay of a rejected update found ('autopsy').
4. ``halt_story``: the text that a halted run leaves behind.
"""
