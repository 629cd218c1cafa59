"""Small helpers that need the standard library only; private.

Nothing here knows about guards, tensors or MMEngine:

- ``atomic_write``: write a file so that readers see all of it or nothing.
- ``console_line``: lines of limited width, which keep what matters most.
- ``escape``: text that is safe to show, and words that are safe to paste.
- ``process_identity``: whether a process that wrote a file still runs.
- ``parts``: the parts of containers and of objects, for walks over a batch.
- ``sample_name``: the name of a sample from its metadata.
- ``dataset_parts``: the datasets that a wrapped dataset consists of.
- ``sample_validator``: the role of transforms that validate samples.
- ``loss_checks``: the reader of functions that check a loss.
- ``smallest_subset``: a minimal failing subset of items (ddmin).
"""
