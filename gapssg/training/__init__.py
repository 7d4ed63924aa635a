"""Training runs: the loop, the trainee, distillation and the training of teachers."""
