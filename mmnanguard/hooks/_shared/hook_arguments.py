"""Types of the arguments with which MMEngine and the guard call a hook."""

from typing import Any, Dict, Mapping, Optional

__all__ = ['Checkpoint', 'DataBatch', 'Outputs', 'Row']

# Any object, because a user's collate function makes it. `object` and not
# `Any`: mypy then demands a check of its type before each use.
DataBatch = object
# The log values of a model's ``train_step``, losses among them.
Outputs = Optional[Mapping[str, object]]
# The content of a checkpoint file.
Checkpoint = Dict[str, Any]
# One row of events.jsonl.
Row = Mapping[str, Any]
