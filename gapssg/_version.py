"""The version, read by the build and by `gapssg --version`."""

__version__ = "0.2.0"
