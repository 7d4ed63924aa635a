"""Measured speed and memory; RESULTS.md says what was measured, on what, with which settings."""
