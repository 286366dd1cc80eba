"""What comes in: photos on disk become a checked table, a split, and one array of pixels. No torch in here."""
