"""Vectors of many images: fast, resumable, every image accounted for."""
