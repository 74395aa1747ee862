"""A low-resolution map from nothing: one start by expectation-maximisation, and several of them compared."""
