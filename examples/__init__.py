"""Example programs, each with a README. Run them from the repository: python -m examples.NAME."""
