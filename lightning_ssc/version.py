"""The version, apart from the public names so that any room may say it."""

__version__ = "0.2.0"
