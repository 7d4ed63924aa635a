"""Settings: the base class, the common parts, and how they are read, overridden and checked."""
