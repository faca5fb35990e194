"""Datasets of other formats as episodes of a store: `load.load` reads one, each module here knows one format."""
