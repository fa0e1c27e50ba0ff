"""What comes in: images and captions, from folders, tables, lists and tars."""
