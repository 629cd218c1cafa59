"""Warnings before an update goes bad.

1. ``stability_monitor_hook``: the hook, which samples and tells.
2. ``records`` and ``sample_file``: the samples, ``stability.jsonl``.
3. ``acts``: what it does about its alerts.
4. ``measured``: which modules and weights are measured.
"""
