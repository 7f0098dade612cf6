"""The embedded model: a small MusicGen of our own, trained on music with exact labels."""
