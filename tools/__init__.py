"""The tools that users run; ``python -m mmnanguard TOOL`` runs them too."""
