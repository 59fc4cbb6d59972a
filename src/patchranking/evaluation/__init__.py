"""Methods measured on images: rows, costs, speed, budgets, the paper's tables."""
