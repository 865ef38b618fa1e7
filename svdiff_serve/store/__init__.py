"""Know every δ of folders and repositories by its content, and hold the gains of those that are used."""
