"""Image formation: CTF, translation, Fourier slice and its adjoint, noise."""
