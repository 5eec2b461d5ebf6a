"""HTML from the templates in the folder beside this module; whatever is put into one is escaped.

The views say what is shown and in which words, a template how it is marked up.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined

_ENVIRONMENT = Environment(
    loader=PackageLoader("for_app.views"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: object) -> str:
    """The HTML of a template with its values.

    template: the name of its file, without `.html`.
    values: by the names that the template uses. They are escaped, but for those that are `markupsafe.Markup`: HTML that
        FOR made itself.
    Raises jinja2.UndefinedError when the template uses a value that isn't given.
    """
    return _ENVIRONMENT.get_template(f"{template}.html").render(values)
