"""What is shown, as HTML, SVG, pictures and text; no web framework. The page and the commands put it in place."""
