"""How good a student is without real images: probe images, evidence, and calibrated predictions."""
