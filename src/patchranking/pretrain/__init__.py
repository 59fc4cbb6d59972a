"""Pretraining of the towers: accelerated contrastive learning, on a loop, a budget and measures shared by methods."""
