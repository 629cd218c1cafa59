"""How each of MMEngine's visualizer backends is given a text."""

import html
from typing import Any, Callable, Mapping, Optional

__all__ = ['text_writer']

Writer = Callable[[str, str, int], None]


def text_writer(backend: Any) -> Optional[Writer]:
    """What writes ``(tag, text, step)`` to a backend; None if nothing does.

    A backend of a user's own takes part by a method
    ``add_text(tag, text, step)``.
    """
    if hasattr(backend, 'add_text'):
        add_text: Writer = backend.add_text
        return add_text
    for cls in type(backend).__mro__:
        if cls.__name__ in WRITERS:
            write = WRITERS[cls.__name__]
            return lambda tag, text, step: write(
                backend.experiment, tag, text, step
            )
    return None


def to_tensorboard(writer: Any, tag: str, text: str, step: int) -> None:
    writer.add_text(tag, text, step)


def to_wandb(wandb: Any, tag: str, text: str, step: int) -> None:
    # A step of its own: a second text before the next scalars would take the
    # place of the first.
    wandb.log({tag: wandb.Html(f'<pre>{html.escape(text)}</pre>')})


def to_mlflow(mlflow: Any, tag: str, text: str, step: int) -> None:
    mlflow.log_text(text, f'{tag}/{step}.md')


def to_clearml(clearml: Any, tag: str, text: str, step: int) -> None:
    clearml.Logger.current_logger().report_text(f'{tag} {step}\n{text}')


def to_neptune(run: Any, tag: str, text: str, step: int) -> None:
    run[tag].append(text, step=step)


def to_aim(run: Any, tag: str, text: str, step: int) -> None:
    from aim import Text

    run.track(Text(text), name=tag, step=step)


WRITERS: Mapping[str, Callable[[Any, str, str, int], None]] = {
    'TensorboardVisBackend': to_tensorboard,
    'WandbVisBackend': to_wandb,
    'MLflowVisBackend': to_mlflow,
    'ClearMLVisBackend': to_clearml,
    'NeptuneVisBackend': to_neptune,
    'AimVisBackend': to_aim,
}
