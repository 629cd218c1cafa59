"""The rows of ``events.jsonl``, one record class per kind of row.

A record can be converted into a row, a sentence and a console line, and a row
back into a record. Hooks write rows with these classes, and the report reads
rows with them. Read in this order:

1. ``event_files``: the places of a run's rows and dumps.
2. ``row_record``: the base class, and the way from a row to a record
   (``json_numbers``: NaN and Inf in JSON; ``phrases``: parts of sentences).
3. ``guard_event``: an update that was not a plain step ('update');
   ``build_event`` makes it from an observation and a verdict, and
   ``event_words`` its sentence and its console line.
4. ``autopsy``: the findings of a replay of a rejected update, in words
   (``autopsy_line``).
5. ``start_row``, ``input_row``, ``dump_row``, ``remedy_row``,
   ``rollback_row``, ``audit_row``, ``alert_row``, ``bypass_row``,
   ``halt_row``, ``end_row``: the other kinds.
6. ``read_row``: the record of a row of any kind.
7. ``halt_story``: the text that a halted run leaves behind.
"""
