"""``groupcam-aug evaluate``: how good maps are."""
