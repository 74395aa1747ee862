"""Figures of merit: FSC, alignment of maps, pose errors, and all of them together."""
