"""A vision-language model as the expert who is asked about concepts: yes, no, or it does not know.

Any OpenAI-compatible server that reads pictures. Every answer is kept in the cache as soon as it comes, so an
interrupted run goes on where it was and other policies pay nothing for the same question.
"""

import base64
import hashlib
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from cbm.concepts.llm.client import Endpoint
from cbm.data.images import Images
from cbm.errors import UserError
from cbm.files import cannot_write, open_regular

PROMPT = 'Look at the picture. Does it show this: "{concept}"? Answer with one word: yes, no or unsure.'
SIDE = 512  # pixels; larger pictures are sent smaller


class VisionExpert:
    """Answers about pictures; a function from what is asked ``[N, K]`` bool to answers (1, 0, NaN).

    Args:
        endpoint: the server and the model.
        images: N pictures.
        concepts: K texts.
        cache: answers are kept in ``CACHE/vision/MODEL-HASH.jsonl``.
        truth: ``[N, K]`` to count how often the expert is right.

    Raises:
        UserError: settings that cannot work, or no key for a hosted model.
    """

    def __init__(self, endpoint: Endpoint, images: Images, concepts: list[str], cache: Path, truth: Tensor):
        endpoint.check()
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "--expert needs the openai package: uv pip install -e '.[llm]' -c constraints.txt"
            ) from error
        self.endpoint, self.images, self.concepts, self.truth = endpoint, images, concepts, truth
        self.client: Any = openai.OpenAI(
            api_key=endpoint.key(), base_url=endpoint.url, timeout=endpoint.timeout, max_retries=endpoint.retries
        )
        self.failure: type[Exception] = openai.OpenAIError
        self.keys = images.fingerprints(cache)
        named = hashlib.sha256(f"{endpoint.model}|{PROMPT}".encode()).hexdigest()[:12]
        self.file = cache / "vision" / f"{named}.jsonl"
        self.known: dict[tuple[str, str], float] = {}
        self.lock = Lock()
        self.asked, self.right, self.judged = 0, 0, 0
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self.known[entry["picture"], entry["concept"]] = _value(entry["answer"])
                except (ValueError, KeyError, TypeError):
                    continue  # the last line of an interrupted run

    def __call__(self, asked: Tensor) -> Tensor:
        """Ask about the concepts ``[N, K]`` that are True; the other answers are NaN.

        Raises:
            UserError: the server does not answer, whatever is tried, or answers cannot be kept.
        """
        rows = asked.nonzero().tolist()
        missing = [(n, k) for n, k in rows if (self.keys[n], self.concepts[k]) not in self.known]
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            open(self.file, "a", opener=open_regular).close()
        except OSError as error:
            raise cannot_write(self.file, error) from error
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            futures = [pool.submit(self._ask, n, k) for n, k in missing]
            try:
                for future in futures:
                    future.result()
            except self.failure as error:
                for future in futures:
                    future.cancel()
                raise UserError(
                    f"{self.endpoint.host} says nothing about pictures ({type(error).__name__}: {str(error)[:120]}); "
                    f"{len(self.known)} answers are kept, run the same command again to go on"
                ) from error
        found = torch.full(asked.shape, math.nan)
        for n, k in rows:
            found[n, k] = self.known[self.keys[n], self.concepts[k]]
        judged = ~found.isnan() & ~self.truth.isnan()
        self.judged += int(judged.sum())
        self.right += int((found[judged] == self.truth[judged]).sum())
        return found

    def _ask(self, row: int, column: int) -> None:
        concept = self.concepts[column]
        picture = self.images.open(row)
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "text", "text": PROMPT.format(concept=concept)},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
        reply = self.client.chat.completions.create(
            model=self.endpoint.model, messages=[{"role": "user", "content": content}], max_tokens=8, temperature=0
        )
        text = (reply.choices[0].message.content or "") if reply.choices else ""
        entry = {"picture": self.keys[row], "concept": concept, "answer": text}
        with self.lock:
            self.asked += 1
            self.known[self.keys[row], concept] = _value(text)
            with open(self.file, "a", encoding="utf-8", opener=open_regular) as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def summary(self) -> str:
        """One line: what was asked, and how often the answer was right."""
        share = f", {100 * self.right / self.judged:.1f}% right" if self.judged else ""
        return f"{self.endpoint.model} answered {self.asked} new questions ({len(self.known)} are kept{share})"


def _value(text: str) -> float:
    """1 for yes, 0 for no, NaN for anything else."""
    word = "".join(letter for letter in str(text).strip().lower().split(" ")[0] if letter.isalpha())
    return {"yes": 1.0, "no": 0.0}.get(word, math.nan)
