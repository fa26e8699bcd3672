"""Files and their pages, from the first read to the error of a late write."""
