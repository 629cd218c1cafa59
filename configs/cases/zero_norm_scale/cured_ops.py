# guarded.py with operations that a length of 0 does not break; the sample stays
# and says nothing about where the hand is.
_base_ = ['guarded.py']

model = dict(is_safe=True)
