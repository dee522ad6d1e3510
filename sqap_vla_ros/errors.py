"""What can go wrong, by when it can go wrong and what the robot does about it."""


class SqapError(Exception):
    """Base of every error this package raises on purpose.

    A message names the thing, what came, what is allowed and the way out.
    """


class ConfigError(SqapError):
    """A knob has a value that is not allowed. Can only happen before activation."""


class CheckpointError(SqapError):
    """A checkpoint is missing, damaged or of another kind. Can only happen before activation."""


class InputError(SqapError):
    """One message cannot be used. It is dropped and counted; the robot holds if nothing fresh remains."""


class InferenceError(SqapError):
    """The policy could not produce a usable action. The robot holds."""
