"""The one exception type that both packages raise for bad input."""


class SecateurError(ValueError):
    """Input that cannot be worked with.

    The message says what was expected and what came. Nothing was written when it is raised.
    """

    exit_code = 2
