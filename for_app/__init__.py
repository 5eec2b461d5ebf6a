"""The web page: its tabs, views, endpoints and guards, all that knows Gradio.

Searching is in `for_search`, and works without it.
"""

import logging
import os

# No telemetry, whatever `import gradio` or `launch` would send otherwise. Must come before gradio is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Gradio sums up its last 10,000 events after each, for a page that isn't shown: more work than a search.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
# Gradio asks Matplotlib for its backend in every event, which takes half a second the first time if it isn't told.
os.environ.setdefault("MPLBACKEND", "agg")
logging.getLogger("httpx").setLevel(logging.WARNING)
