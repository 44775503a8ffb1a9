"""Blobs of keys and values: their layout, their codec, and the tiers that keep them."""
