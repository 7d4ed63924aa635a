"""The training core: pretrain, distil, evaluate, and the run directory."""
