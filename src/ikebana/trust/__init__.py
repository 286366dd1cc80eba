"""How far a network can be believed: arrays in, judgements out. No torch in here."""
