"""What a client is told when a request cannot be served, as OpenAI's clients read it."""

from typing import Any

from secateur.errors import SecateurError


class RequestFault(SecateurError):
    """A request that is answered with an error. Its text is for the client."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        """Say what is wrong.

        Args:
            message: what was expected and what came.
            status: of the HTTP response.
            param: the field of the request that is wrong.
            code: a word that programs can go by.
        """
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        # It may quote what a client sent: JSON holds halves of characters, which UTF-8 cannot.
        message = str(self).encode("utf-8", "backslashreplace").decode("utf-8")
        return {
            "error": {
                "message": message,
                "type": kinds.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def shutting_down() -> RequestFault:
    """The server was told to stop."""
    return RequestFault("the server is shutting down", status=503, code="shutting_down")


def too_long(limit: int, but: str, param: str) -> RequestFault:
    """There is no room for a prompt with its answer.

    Clients and proxies know by these very words that a conversation has to be shortened.

    Args:
        limit: tokens that there is room for.
        but: what came instead.
        param: the field at fault.
    """
    start = "" if param == "max_tokens" else "the prompt is too long: "
    return RequestFault(
        f"{start}this model's maximum context length is {limit} tokens, prompt and answer "
        f"together, but {but}",
        param=param,
        code="context_length_exceeded",
    )
