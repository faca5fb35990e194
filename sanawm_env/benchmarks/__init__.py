"""Speed and memory, measured: one script a subject, behind `sanawm bench`."""
