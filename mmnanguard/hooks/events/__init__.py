"""Hooks that write the events of a run down.

1. ``event_log_hook``: ``events.jsonl``, one row per event.
2. ``event_text_hook``: rows as text for dashboards (``event_text``).
"""
