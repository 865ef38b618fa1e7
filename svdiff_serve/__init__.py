"""Serve pictures of many deltas from one model: a store of δ, an engine that batches across them, an HTTP interface."""
