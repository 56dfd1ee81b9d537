"""Data sets: authentic layouts in, checked before work starts; and the embedded digit scenes."""
