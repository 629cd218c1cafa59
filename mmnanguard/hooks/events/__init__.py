"""Hooks that write the events of a run to files and dashboards.

1. ``event_log_hook``: one row per event in ``events.jsonl``.
2. ``crash``: the bad numbers in an iteration that an exception ended.
3. ``event_text_hook``: rows as text in the backends of the visualizer;
   ``event_text`` has one writer per backend.
"""
