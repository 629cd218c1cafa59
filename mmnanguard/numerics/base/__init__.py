"""Tensor operations that the other rooms of this ring build on.

- ``host_read``: bring many 0-dim tensors to the host in one transfer.
- ``norms``: one norm per tensor.
- ``foreach``: multi-tensor kernels, with a slower way where one is missing.
- ``shards``: which tensors are sharded over ranks, and over which.
- ``dtype_name``: the name of a dtype without 'torch.'.
- ``rng_state``: read and set the state of the random generators.
"""
