"""GPT-2 and its arithmetic."""
