"""The rows of ``events.jsonl``, one record class per kind of row.

A record turns itself into a row, a sentence and a console line, and a row
back into a record. Hooks write rows with these classes and the report reads
with them.

1. ``event_files``: where the rows and the dumps of a run are.
2. ``row_record``: the base class, and how a row becomes a record
   (``json_numbers``: NaN and Inf in JSON).
3. ``guard_event``: an update that was not a plain step ('update');
   ``build_event`` makes it of an observation and a verdict.
4. ``autopsy``: what a replay of a rejected update found.
5. ``start_row``, ``input_row``, ``dump_row``, ``remedy_row``,
   ``rollback_row``, ``audit_row``, ``halt_row``: the other kinds.
6. ``read_row``: the record of a row of any kind.
7. ``halt_story``: the text that a halted run leaves behind.
"""
