"""Models as files that other programs run: ONNX, torch.export and TorchScript, each tried before it is kept."""
