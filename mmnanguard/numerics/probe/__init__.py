"""A window run again under observation, to find where a fault begins.

1. ``replay``: run the window again and leave no trace.
2. ``module_probe``: follow non-finite numbers to the operation that made them.
3. ``output_ranges``: the range of what each top-level module returns.
4. ``sample_tracker``: follow which samples each number is made of
   (``sample_sets``, ``storage_views``).
"""
