"""Benchmarks of speed, memory and accuracy. RESULTS.md has the results, machines and settings."""
