"""Rotations, the SO(3) grid, and the only Fourier transforms of the package."""
