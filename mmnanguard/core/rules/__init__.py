"""The judgement of one update: facts in, a verdict out, nothing else.

Everything is a frozen record or a pure function. Read in this order:

1. ``observation``: the facts about one update.
2. ``policy``: the rules that a user sets, ``optim_wrapper.guard``.
3. ``state``, ``recent_commits``, ``growth_of_series``, ``usual_norm``,
   ``loss_span``: the memory of a guard from update to update, and the trends
   that its commits show.
4. ``verdict``: the action, the cause, the move of the loss scale.
5. ``scale_trial``, ``judge_scale``: the evidence for and against the loss
   scale.
6. ``decide``: observation, state and policy give a verdict.
7. ``spike``, ``divergence``, ``lr_backoff``: the optional rules.
"""
