"""The replay of a window under observation, to find where a fault begins.

1. ``replay``: run the window again and leave no trace.
2. ``module_probe``: follow non-finite numbers back to the operation that made
   them, their ``origin`` (``place``: where in the user's code;
   ``element_facts``: what can be asked of any tensor; ``plain_attributes``:
   tensors that a model keeps from batch to batch).
3. ``pole``: tell whether that operation overflowed or was not defined.
4. ``output_ranges``: the range of the outputs of each top-level module.
5. ``sample_tracker``: follow samples through the operations, to know the
   samples that each element depends on (``sample_sets``, ``storage_views``).
"""
