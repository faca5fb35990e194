"""Episode stores in the formats of other libraries: `export.export` writes one, each module here knows one format."""
