# plain.py with the guard's check of the weights after the step, alone.
_base_ = ['plain.py']

default_hooks = dict(
    event_log=dict(type='mmnanguard.EventLogHook'),
    audit=dict(type='mmnanguard.StateAuditHook', interval=1),
)
