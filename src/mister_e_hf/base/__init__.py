"""What every other folder builds on: errors, files, configurations, losses, the code of a checkpoint."""
