"""The full steering study and its figures."""
