"""nertool: from texts annotated by an LLM to a small, fast, trustworthy biomedical NER model."""

__version__ = "0.1.0"
