from torch import nn

__all__ = ['ModuleStructure']


class ModuleStructure:
    """What hangs on one module: names of buffers and parameters, children.

    Args:
        owner: The module, as it is now.
    """

    __slots__ = ('buffers', 'children', 'owner', 'params')

    def __init__(self, owner: nn.Module) -> None:
        self.owner = owner
        self.buffers = tuple(owner._buffers)
        self.params = tuple(owner._parameters)
        self.children = list(owner._modules.items())

    def is_outdated(self) -> bool:
        """Did something come, go, or take a child's place? Looked at in each
        window, so by numbers where a slot tells the rest.
        """
        owner = self.owner
        return (
            len(owner._buffers) != len(self.buffers)
            or len(owner._parameters) != len(self.params)
            or (
                bool(owner._modules or self.children)
                and list(owner._modules.items()) != self.children
            )
        )

    def restore(self) -> None:
        """Take away what came, put back children that went."""
        for registry, names in (
            (self.owner._buffers, self.buffers),
            (self.owner._parameters, self.params),
        ):
            for key in set(registry) - set(names):
                del registry[key]
        if list(self.owner._modules.items()) != self.children:
            self.owner._modules.clear()
            self.owner._modules.update(self.children)
