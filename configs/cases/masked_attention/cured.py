# guarded.py with layers and a mean that a text of nothing but padding does not
# break.
_base_ = ['guarded.py']

model = dict(is_safe=True)
