"""Exact real-time recurrent learning for Keras and TF-Agents."""
