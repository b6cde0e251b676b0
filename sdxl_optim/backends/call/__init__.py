"""The form of a call that is prepared, and what keeps a call from being prepared."""
