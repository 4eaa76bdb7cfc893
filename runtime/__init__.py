"""Ways to run a program one step at a time."""
