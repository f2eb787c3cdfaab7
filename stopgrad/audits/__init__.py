"""What stood still, what is kept, what agrees: audits of frozen parts, retained graphs and ranks."""
