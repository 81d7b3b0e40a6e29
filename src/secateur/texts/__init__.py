"""Text from where people keep it: files, folders, JSON lines, `datasets`, sequences."""
