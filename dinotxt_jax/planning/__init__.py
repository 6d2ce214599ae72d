"""Compiles a run for TPU slices without having them, and reports memory and cost."""
