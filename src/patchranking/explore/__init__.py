"""A local page to look at single pictures: what a method keeps of them, and what the model then says."""
