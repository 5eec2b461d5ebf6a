"""Plain HTTP routes that the page's own scripts in `static` ask: hits, pictures, comparisons, tables.

What programs call is in `endpoints`; what is said and drawn comes from `views`.
"""
