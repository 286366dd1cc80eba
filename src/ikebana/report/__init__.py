"""What people look at: one self-contained HTML page, its charts and its templates."""
