"""Errors that a user can do something about. Each message says what is wrong and what to do next."""


class AdaptdError(Exception):
    """Any fault that adaptd reports by itself; exit code 1."""

    exit_code = 1


class ConfigError(AdaptdError):
    """The configuration is wrong. Carries every fault found, not only the first."""

    exit_code = 78

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class InputError(AdaptdError):
    """The input cannot be read, or is another one than the checkpoint's."""


class CheckpointError(AdaptdError):
    """A checkpoint cannot be used."""


class UsageError(AdaptdError):
    """Wrong use of the command line."""

    exit_code = 2
