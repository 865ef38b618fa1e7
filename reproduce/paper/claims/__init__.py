"""The paper's claims: each with its measure, margin, pairing and looks, written down before its cells are run."""
