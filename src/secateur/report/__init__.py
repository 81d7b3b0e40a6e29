"""What a compression did, as data (record), as a page (page, plots) and on the terminal (table)."""
