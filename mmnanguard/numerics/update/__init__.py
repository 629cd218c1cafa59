"""The stages of one update, in the order of ``optim/guarded_step``.

1. ``observe``: gradients, losses and buffers become an ``Observation``.
2. ``agree``: all ranks get the same observation.
3. ``apply``: unscale, clip and step.
4. ``blame``: name the tensors that a rejection is about.
5. ``loss_scale``: a GradScaler that moves by verdict (``grad_scaler`` hides
   the differences between versions of PyTorch).
6. ``grad_rules``: clip rules that need tensors.
7. ``grad_sum``: the sum of gradients over micro-batches.
8. ``watch``: tensors that a model publishes under a name.
"""
