"""The writing side of the SVDiff delta format in the standard library alone: what makes the conformance vectors."""
