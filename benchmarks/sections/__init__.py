"""The sections of the documentation that hold results, by topic."""
