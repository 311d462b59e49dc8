"""Text for training from public sources: their table, their readers, and the check that no evaluation text is among them."""
