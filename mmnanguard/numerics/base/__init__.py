"""Tensor operations that the other rooms of this ring build on.

- ``tensor_kinds``: what can be done with each kind of tensor.
- ``host_read``: bring many 0-dim tensors to the host in one transfer.
- ``norms``: the norm of each of many tensors.
- ``foreach``: multi-tensor kernels, with a loop where one is missing.
- ``shards``: which tensors are sharded over ranks, and over which ranks.
- ``dtype_name``: the name of a dtype without 'torch.'.
- ``comm_hooks``: the states of DDP's communication hooks, copied and named.
- ``rng_state``: read and set the state of the random generators.
"""
