"""Classifiers as graphs of PyTorch operators, from ONNX, TorchScript and `torch.export` files; imports no torch."""
