"""How a pruner comes to be."""
