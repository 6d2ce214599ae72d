"""Curation: choosing training pairs from a pool by their captions and images."""
