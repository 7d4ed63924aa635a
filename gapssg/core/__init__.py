"""Tensors, devices and random streams that every room above uses."""
