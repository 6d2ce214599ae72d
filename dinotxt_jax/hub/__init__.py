"""Models from a hub and to a hub: fetch and convert once, list known models, push with a card."""
