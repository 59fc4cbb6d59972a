"""Phase II: networks that score patches, their losses, imitation and distillation."""
