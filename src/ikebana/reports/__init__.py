"""Reports for people: a self-contained HTML page, its charts and its templates."""
