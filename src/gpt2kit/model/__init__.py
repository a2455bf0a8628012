"""GPT-2: the model, its layers, and changes to its weights."""
