"""The ways in which MMEngine's visualizer backends take a text.

MMEngine's visualizer has no method for texts, only for scalars, images and
configs. Each backend has its library's own object in ``experiment``, to which
the functions of this module write.
"""

import html
from typing import Any, Callable, Mapping, Optional

__all__ = ['text_writer']

# A function of tag, text and step.
Writer = Callable[[str, str, int], None]
# An object of a library that need not be installed, so that typing does not
# know it.
Foreign = Any


def text_writer(backend: Foreign) -> Optional[Writer]:
    """Return a function that writes a text to a backend.

    A user's own backend takes part if it has a method
    ``add_text(tag, text, step)``.

    Returns:
        A function of tag, text and step, or None if the backend takes no
        text.
    """
    if hasattr(backend, 'add_text'):
        add_text: Writer = backend.add_text
        return add_text
    # By name, because older versions of MMEngine lack some of these classes.
    # All base classes are searched, so that a user's subclass takes part.
    for cls in type(backend).__mro__:
        if cls.__name__ in WRITERS:
            write = WRITERS[cls.__name__]
            # Not before a text is written: ``experiment`` starts the backend.
            return lambda tag, text, step: write(
                backend.experiment, tag, text, step
            )
    return None


def to_tensorboard(writer: Foreign, tag: str, text: str, step: int) -> None:
    """Write to a ``SummaryWriter``."""
    writer.add_text(tag, text, step)


def to_wandb(wandb: Foreign, tag: str, text: str, step: int) -> None:
    """Write to the module ``wandb``."""
    # Without ``step``, wandb counts a new step of its own. With it, a second
    # text before the next scalars would replace the first.
    wandb.log({tag: wandb.Html(f'<pre>{html.escape(text)}</pre>')})


def to_mlflow(mlflow: Foreign, tag: str, text: str, step: int) -> None:
    """Write an artifact by the module ``mlflow``."""
    # A file per step: an artifact of an equal name would be overwritten.
    mlflow.log_text(text, f'{tag}/{step}.md')


def to_clearml(clearml: Foreign, tag: str, text: str, step: int) -> None:
    """Write to the current logger of the module ``clearml``."""
    # report_text() has neither tag nor step, so both are in the text.
    clearml.Logger.current_logger().report_text(f'{tag} {step}\n{text}')


def to_neptune(run: Foreign, tag: str, text: str, step: int) -> None:
    """Write to a ``neptune.Run``."""
    run[tag].append(text, step=step)


def to_aim(run: Foreign, tag: str, text: str, step: int) -> None:
    """Write to an ``aim.Run``."""
    # Imported here, because aim is installed only where its backend is used.
    from aim import Text

    run.track(Text(text), name=tag, step=step)


WRITERS: Mapping[str, Callable[[Foreign, str, str, int], None]] = {
    'TensorboardVisBackend': to_tensorboard,
    'WandbVisBackend': to_wandb,
    'MLflowVisBackend': to_mlflow,
    'ClearMLVisBackend': to_clearml,
    'NeptuneVisBackend': to_neptune,
    'AimVisBackend': to_aim,
}
