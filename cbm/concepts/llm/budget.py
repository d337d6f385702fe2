"""What a run may cost: requests that are sent, and tokens that are paid for."""

from dataclasses import dataclass

from cbm.errors import UserError

LETTERS_PER_TOKEN = 4


class BudgetUsed(Exception):
    """Nothing more may be sent; the text is the last failure before that, or empty."""


@dataclass
class Budget:
    """Limits of one run, and how much of them is used.

    Attributes:
        requests: HTTP requests that may be sent (retries, rewrites and redirects count); None is no limit.
        tokens: tokens of prompts and answers that may be paid for; None is no limit. Requests in flight may pass it.
        sent: requests so far.
        spent: tokens so far, as the server counts them, or by letters where it does not.
    """

    requests: int | None = None
    tokens: int | None = None
    sent: int = 0
    spent: int = 0

    def check(self) -> None:
        """Refuse limits that allow nothing.

        Raises:
            UserError: names the option.
        """
        for option, value in (("max-requests", self.requests), ("max-cost-tokens", self.tokens)):
            if value is not None and value < 1:
                raise UserError(f"--{option} {value}: expected 1 or more")

    @property
    def requests_left(self) -> int | None:
        """Requests that may still be sent; None is no limit."""
        if self.tokens is not None and self.spent >= self.tokens:
            return 0
        return None if self.requests is None else max(0, self.requests - self.sent)

    def take(self, prompt: int, why: str = "") -> None:
        """Count a request that is about to be sent.

        Args:
            prompt: tokens of its prompt, at least.
            why: the last failure.

        Raises:
            BudgetUsed: it may not be sent any more.
        """
        if self.requests_left == 0 or (self.tokens is not None and self.spent + prompt > self.tokens):
            raise BudgetUsed(why)
        self.sent += 1

    def pay(self, told: int, letters: int) -> int:
        """Count tokens: as many as were told, else by the letters; returns how many that is."""
        paid = told or max(1, -(-letters // LETTERS_PER_TOKEN))
        self.spent += paid
        return paid

    @property
    def spoken(self) -> str:
        """The limit that was reached, with its option: ``--max-requests 5``."""
        if self.requests is not None and self.sent >= self.requests:
            return f"--max-requests {self.requests}"
        return f"--max-cost-tokens {self.tokens}"

    def used(self, answered: int, questions: int, why: str = "") -> str:
        """The one line for a run that its budget ended.

        Args:
            answered: questions whose answers are kept.
            questions: questions in all.
            why: the last failure, or empty.
        """
        option, number = self.spoken.split()
        what = "requests" if option == "--max-requests" else "tokens"
        return (
            f"the budget of {number} {what} is used: {answered} of {questions} questions are answered and kept; run "
            f"the same command again with a higher {option}, it asks only for the rest"
            + (f" (last failure: {why})" if why else "")
        )
