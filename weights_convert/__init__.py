"""Converts released checkpoints into model directories, without the framework that wrote them."""
