"""Which concept to ask about, and what follows from the answer."""
