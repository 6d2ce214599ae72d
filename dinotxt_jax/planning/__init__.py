"""Compiles a run for TPU slices that need not exist, and reports memory and cost."""
