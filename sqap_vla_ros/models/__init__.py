"""One file per model family, and the plain torch parts they share."""
