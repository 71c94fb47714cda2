"""``groupcam-aug study``: does the augmentation help, beside controls?"""
