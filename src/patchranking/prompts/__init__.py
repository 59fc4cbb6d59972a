"""Learnable text and visual tokens that tune a pruned model with a few labelled images (Phase III)."""
