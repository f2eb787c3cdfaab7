"""What each cut of a script is worth: its stops, and arms that differ by one of them."""
