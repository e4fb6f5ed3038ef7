"""Ways out of the project: folders that other programs read."""
