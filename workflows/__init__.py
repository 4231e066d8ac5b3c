"""The stages on Ray, and their command lines. `full_pipeline.py` calls them top to bottom."""
