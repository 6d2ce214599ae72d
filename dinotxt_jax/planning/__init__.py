"""Compiling a run for TPU slices that are not there, and saying what it would cost."""
