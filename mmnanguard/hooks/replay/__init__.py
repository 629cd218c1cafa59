"""Hooks that run a rejected window again, and all that a replay needs.

1. ``window``: the micro-batches since the last update, and ``WindowHook``.
2. ``batch_keeper``: batches as they were before the model changed them.
3. ``window_replay``: runs the kept window again, in several settings;
   ``isolated_message_hub`` keeps a replay out of the logs.
4. ``autopsy_hook``: finds the module and the samples at fault;
   ``try_cures`` tries what the user could change, and ``narrow_down``
   looks for the sample without which a batch is finite. ``engine_copy``:
   the model of a DeepSpeed engine, which cannot run a window itself.
5. ``fp32_modules_hook``: runs modules in float32.
6. ``batch_dump_hook``, ``batch_dump``: write a window to a file
   (``plain_batch``: as tensors and builtins only).
7. ``dump_replay``, ``replay_config``, ``replay_weights``: run a dump in
   another process (``plain_config``: its config is read as data;
   ``check_dump``: a damaged one is refused).
"""
