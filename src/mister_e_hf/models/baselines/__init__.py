"""Published systems of emotion recognition in conversations to compare MiSTER-E with. None uses who speaks."""
