"""What goes with a pruner that is shared: its figures, its card, and what is said where the Hub refuses."""
