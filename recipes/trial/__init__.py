"""``groupcam-aug trial``: does the augmentation help on your data, beside controls?"""
