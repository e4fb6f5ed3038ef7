"""What is lost between a recording and its codes: every codec of the store, side by side."""
