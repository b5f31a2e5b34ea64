"""Audio, subtitle and text files, read into arrays and turns."""
