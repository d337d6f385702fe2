"""What the commands that ask a model have in common: who is asked, and what it may cost."""

from typing import TYPE_CHECKING, Annotated

import typer

from cbm.errors import UserError

if TYPE_CHECKING:
    from cbm.concepts.llm.endpoint import Endpoint

BaseUrl = Annotated[str | None, typer.Option(help="Address of its server; default: OpenAI.")]
Concurrency = Annotated[int, typer.Option(help="Requests at the same time.")]
MaxRequests = Annotated[
    int | None,
    typer.Option(help="Requests of this run after which the model is asked no more; repeated ones count too."),
]
MaxCostTokens = Annotated[
    int | None,
    typer.Option(
        "--max-cost-tokens",
        help="Tokens (of questions and answers) of this run after which the model is asked no more; only requests that "
        "are being answered by then can pass it.",
    ),
]
AllowHttp = Annotated[
    bool, typer.Option("--allow-http", help="Send OPENAI_API_KEY to another machine over http, unencrypted.")
]


def vision_endpoint(
    model: str | None, option: str, base_url: str | None, concurrency: int, max_requests: int | None,
    max_cost_tokens: int | None, allow_http: bool,
) -> "Endpoint | None":  # fmt: skip
    """Who is asked, checked before anything is opened; None if nobody is.

    Args:
        model: name of the model, or None.
        option: the option that says it.
        base_url: address of its server.
        concurrency: requests at the same time.
        max_requests: requests of this run.
        max_cost_tokens: tokens of this run.
        allow_http: whether a key may go to another machine unencrypted.

    Raises:
        UserError: settings that cannot work, no key for a hosted model, or options for a model that nobody named.
    """
    limits = (("--max-requests", max_requests), ("--max-cost-tokens", max_cost_tokens))
    for name, value in limits:
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: expected 1 or more")
    if model is None:
        for name, given in (("--base-url", base_url), *limits, ("--allow-http", allow_http or None)):
            if given is not None:
                raise UserError(f"{name} needs {option}: who is asked there")
        return None
    from cbm.concepts.llm import check_installed

    check_installed()
    from cbm.concepts.llm.endpoint import Endpoint

    endpoint = Endpoint(
        model, base_url, concurrency, max_requests=max_requests, max_cost_tokens=max_cost_tokens, allow_http=allow_http
    )
    endpoint.check()
    endpoint.key()
    return endpoint
