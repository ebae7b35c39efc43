"""Programs that use the package, each with a card. Run from the repository: python -m examples.NAME."""
