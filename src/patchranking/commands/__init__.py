"""The commands: each is a function whose arguments are its options."""
