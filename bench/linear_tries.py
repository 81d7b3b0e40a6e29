"""Runs the candidates of a job one by one: what fails, hangs or kills its process is left out."""

from collections.abc import Callable

import torch

from secateur_kernels.errors import SecateurError
from secateur_kernels.testing.attempts import Attempts, check_usable

# A kernel that processes died of this often is not tried at other sizes either.
_MOST_DEATHS = 2
_LONGEST_NOTE = 300
ALL_IN_TURNS = "all in turns"


class Tries:
    """The candidates of one job: an op, a weight, tokens and a mode."""

    def __init__(self, attempts: Attempts, job: str, device: torch.device) -> None:
        """`job`: in words, different for each."""
        self.attempts = attempts
        self._job = job
        self._device = device

    def runs(
        self,
        name: str,
        blame: str,
        call: Callable[[], object],
        notes: dict[str, str],
        how: str,
        longer: float = 1.0,
    ) -> bool:
        """Call, and wait for the device; where that fails, note why.

        Args:
            name: of the candidate.
            blame: the kernel that it runs.
            call: what it does.
            notes: by name, to be added to.
            how: what is being done, for the note.
            longer: as of `Attempts.trying`.

        Raises:
            BrokenContextError: CUDA cannot be used any more.
        """
        before, described = self._died_before(name, blame), notes.get(name, "")
        if before:
            notes[name] = f"left out: {before}; {described}"
            return False
        with self.attempts.trying(self._what(name), blame, longer):
            try:
                call()
                _wait(self._device)
            except Exception as error:  # those of Triton are no RuntimeError
                kind = "not there" if isinstance(error, SecateurError) else "failed"
                notes[name] = f"{kind}: {how}: {_causes(error)}; {described}"
                check_usable(self._device)
                return False
        return True

    def together(self, call: Callable[[], object]) -> None:
        """What is done with all candidates that ran alone.

        Raises:
            Exception: that of the call.
            BrokenContextError: CUDA cannot be used any more.
        """
        with self.attempts.trying(self._what(ALL_IN_TURNS), ALL_IN_TURNS):
            try:
                call()
                _wait(self._device)
            except Exception:
                check_usable(self._device)
                raise

    def is_hopeless(self) -> bool:
        """Whether a process died of all candidates in turns."""
        return any(death.what == self._what(ALL_IN_TURNS) for death in self.attempts.deaths)

    def _died_before(self, name: str, blame: str) -> str:
        here = [death for death in self.attempts.deaths if death.what == self._what(name)]
        if here:
            return f"a process died of it: {here[0].first_line}"
        count = self.attempts.died_of(blame)
        return f"{count} processes died of {blame}" if count >= _MOST_DEATHS else ""

    def _what(self, name: str) -> str:
        return f"{self._job}, {name}"


def _causes(error: BaseException) -> str:
    """What was raised, and in front of it what led to that: a capture that fails says only so."""
    first = str(error).strip().partition("\n")[0][:_LONGEST_NOTE]
    return first if error.__context__ is None else f"{_causes(error.__context__)}, then {first}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
