"""What the workers of an environment are forked from: the environments, imported without notices on the screen."""

from keras_rtrl_cli import quiet

with quiet():
    import keras_rtrl.environments.workers  # noqa: F401
