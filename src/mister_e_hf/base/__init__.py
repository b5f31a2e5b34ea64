"""What every other folder uses: errors, files, configurations, losses, modalities, the code of a checkpoint."""
