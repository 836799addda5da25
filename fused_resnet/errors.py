"""The exceptions of this package.  Each message says what was wrong, what was expected and what to do."""


class ArgumentError(ValueError, RuntimeError):
    """A tensor or number that an op cannot take, or a weights file that a model cannot.

    A RuntimeError too, because that is what torch raises for the same mistakes: code that guards a torchvision model
    with `except RuntimeError` guards this one.
    """


class BackendError(RuntimeError):
    """A backend asked for by name that is not there, or cannot take this call."""
