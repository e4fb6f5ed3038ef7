"""What trainings of small models share: the loop over steps, and checkpoints for a restart."""
