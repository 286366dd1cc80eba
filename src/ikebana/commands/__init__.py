"""One module per verb: the whole flow of that verb."""
