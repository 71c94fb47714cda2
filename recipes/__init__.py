"""What one runs or copies: data, networks, the classifier module, the demo, the command line and ready configs.

Nothing is imported here, so that ``groupcam-aug --help`` stays quick: import the module you need,
for example ``from groupcam_aug.recipes.classifier import Classifier``.
"""
