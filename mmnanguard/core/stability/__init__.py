"""Warnings before an update goes bad: samples of a run in, alerts out.

Everything is a frozen record or a pure function. Read in this order:

1. ``sample``: the numbers of one sampled window.
2. ``limits``: the limits that a user sets, ``StabilityMonitorHook``.
3. ``headroom``: the countdown of a module to the limit of its dtype.
4. ``start``, ``learning``: what the run began with, and its losses since.
5. ``rules``: the other rules, one function each; ``loss_scales`` for one.
6. ``schedule``: the iterations in which samples begin.
7. ``monitor``: the memory from sample to sample, and which alerts to tell;
   ``alerts`` for what they say.
8. ``margins``: how far a run is from its limits, in a line.
"""
