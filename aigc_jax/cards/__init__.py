"""What a run is, for people who did not make it: a card in Hugging Face's form, with what it has memorized."""
