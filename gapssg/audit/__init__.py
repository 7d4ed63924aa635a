"""Measures whether synthetic images or models reveal training images, before they are released."""
