"""adaptd: an online adaptive learning daemon."""

__version__ = "0.1.0"
