"""Hooks that run a rejected window again, and what a replay needs.

1. ``window``: the micro-batches since the last update, and ``WindowHook``.
2. ``batch_keeper``: batches as they were before the model changed them.
3. ``window_replay``: run the kept window again, in several settings.
4. ``autopsy_hook``: find the module and the samples at fault.
5. ``fp32_modules_hook``: keep a module in float32.
6. ``batch_dump_hook``, ``batch_dump``: a window in a file
   (``plain_batch``, ``plain_config``: tensors and builtins only).
7. ``dump_replay``, ``replay_config``: run a dump in another process.
8. ``isolated_message_hub``: a replay leaves no trace in the logs.
"""
