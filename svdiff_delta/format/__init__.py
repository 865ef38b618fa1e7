"""The file format: header, parameters, lineage, metadata, and the delta itself (spec, sections 2 to 5)."""
