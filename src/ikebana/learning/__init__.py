"""What is learned: a network and its training, on whatever device there is."""
