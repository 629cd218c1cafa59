"""The badges of a run: its state in one or two words.

A badge is shown first, and tells whether to read on.
"""

__all__ = ['CRASHED', 'HEALTHY', 'NOT_GUARDED', 'RECOVERED', 'SICK', 'UNCLEAR']

HEALTHY = 'Healthy'
RECOVERED = 'Recovered'  # trouble is over, and training went on well since
UNCLEAR = 'Unclear'  # the loss rose far, which may be right
SICK = 'Sick'
CRASHED = 'Crashed'  # or ended early in another way, such as by Ctrl-C
NOT_GUARDED = 'Not guarded'
