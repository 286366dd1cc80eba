"""Heat maps: why a network predicts a class for a photo."""
