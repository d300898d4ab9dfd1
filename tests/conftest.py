"""Which folders are collected under which Keras, and a quiet TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    # TF-Agents runs on tf-keras only.
    collect_ignore = ["environments", "networks", "agents", "drivers", "train"]
