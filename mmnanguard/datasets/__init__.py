"""Ring 3, before the iteration: find, drop or leave out bad samples.

Reading order: ``fields`` (the numbers of a sample, by key), ``checks`` (the
rules that they must keep), ``find_problems`` (checks from a config, applied
to a sample), ``transforms`` (``ValidateSample``, which applies them in a
pipeline) with ``bad_sample_record``; then the audit of a whole dataset:
``audited_dataset`` (a row for each sample), ``dataset_audit`` (all rows),
``distribution`` and ``audit_report`` (the result in files); at last
``sample_list`` and ``exclude_samples`` (train without the bad ones).
"""

from .checks import Finite, NotDegenerate, NotEmpty, Range
from .exclude_samples import ExcludeSamples
from .transforms import ValidateSample

__all__ = [
    'ExcludeSamples',
    'Finite',
    'NotDegenerate',
    'NotEmpty',
    'Range',
    'ValidateSample',
]
