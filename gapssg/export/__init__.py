"""Exports models for other programs, as ONNX, torch.export or TorchScript, and verifies the exported files."""
