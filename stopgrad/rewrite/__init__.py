"""Any script of the user's with some of its lines made otherwise, in memory: its files are never touched."""
