"""The full steering study and its figures."""

COMMAND = "python -m workshop.study.run"
