"""The result of each command, as `result.json` stores it and `--json` prints it. Imports no torch.

Accuracies and other shares are fractions in [0, 1], losses are cross-entropies in nats, times are in seconds. Only
`timing` may differ between two equal runs.
"""
