"""Documents to token ids and back."""
