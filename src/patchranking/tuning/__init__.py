"""Phase III: tokens learned from a few shots."""
