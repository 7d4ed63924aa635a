"""The version, read by the build and by `gapssg --version`."""

__version__ = "0.1.0"
