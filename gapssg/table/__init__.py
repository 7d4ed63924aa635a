"""The published table: rows and methods, runs that fill it, what they reached, and figures of it."""
